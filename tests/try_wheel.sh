#!/bin/sh
# Installs the wheel in an empty environment beside Hugging Face's package
# `datasets`, and trains, exports and predicts in an empty folder.
#
#   sh tests/try_wheel.sh [PYTHON]
set -eu
python=${1:-python3.11}
checkout=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git -C "$checkout" archive --prefix=source/ HEAD | tar -x -C "$folder"
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets
"$folder/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$folder" \
    "$folder/source"
wheel=$(ls "$folder"/*.whl)
"$folder/venv/bin/pip" install --quiet "$wheel[export]"
rm -rf "$folder/source"
mkdir "$folder/empty"
cd "$folder/empty"
"$folder/venv/bin/python" -c 'import datasets; print("datasets", datasets.__version__)'
"$folder/venv/bin/python" -m efficientnetv2.main --dataset=fashion_mnist \
    --model_dir=run --hparam_str=train.epochs=0.2,train.lr_warmup_epoch=0.05
"$folder/venv/bin/python" -m efficientnetv2.main --mode=export \
    --model_dir=run --formats=saved_model,keras,litert,onnx \
    --allow_disagreement
"$folder/venv/bin/python" -m efficientnetv2.data export \
    --dataset=fashion_mnist --images_per_class=1 --output_dir=images
"$folder/venv/bin/python" -m efficientnetv2.predict --model=run --top=1 images
"$folder/venv/bin/python" -m efficientnetv2.predict --model=run/saved_model \
    --top=1 images/test/Sneaker
echo "The wheel works: $(basename "$wheel")"
