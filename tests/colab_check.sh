#!/usr/bin/env bash
# Installs and tries the project beside the packages of Colab's runtimes, on
# this machine's CPU: colab/runtime_NAME.txt lists them.
#
#   bash tests/colab_check.sh [gpu] [tpu] [2026_07]
#
# For each: a fresh environment; what `pip install .` adds, which must replace
# nothing and be pure Python but for TensorFlow on the TPU runtime; training,
# evaluation and export by the command of `make train` with few steps, on JAX
# for the TPU runtime; then all tests. ENVIRONMENTS keeps the environments in a
# folder, TESTS chooses tests.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
environments=${ENVIRONMENTS:-$work}
export JAX_PLATFORMS=cpu PIP_DISABLE_PIP_VERSION_CHECK=1
[ $# -gt 0 ] || set -- gpu tpu 2026_07

only_additions() {  # RUNTIME, of a report of `pip install --dry-run`
    python - "$1" "$work/report.json" <<'END'
import json, re, sys

runtime, report = sys.argv[1:]
listed = {
    re.sub("[-_.]+", "-", line.split("==")[0]).lower()
    for line in open(f"colab/runtime_{runtime}.txt")
    if "==" in line
}
added, faults = [], []
for each in json.load(open(report))["install"]:
    name = re.sub("[-_.]+", "-", each["metadata"]["name"]).lower()
    url = each["download_info"]["url"]
    added.append(f"{name}-{each['metadata']['version']}")
    if name in listed:
        faults.append(f"{name} would be replaced")
    of_tensorflow = runtime == "tpu"
    pure = name == "efficientnetv2" or url.endswith("none-any.whl")
    if not pure and not of_tensorflow:
        faults.append(f"{name} is not pure Python: {url}")
print("pip install . adds", ", ".join(added))
sys.exit("\n".join(faults) or 0)
END
}

unchanged() {  # RUNTIME: whether each listed version is still there
    pip freeze --all | tr '[:upper:]' '[:lower:]' | sort > "$work/found"
    grep == "colab/runtime_$1.txt" | tr '[:upper:]' '[:lower:]' | sort \
        | comm -23 - "$work/found" > "$work/replaced"
    if [ -s "$work/replaced" ]; then
        echo "Replaced:" && cat "$work/replaced" && return 1
    fi
}

try() {  # RUNTIME
    local version=3.13 backend=tensorflow
    case $1 in tpu) backend=jax ;; 2026_07) version=3.12 ;; esac
    echo "== $1: Python $version, $backend"
    # Where pyenv has the Pythons, it hides those that are not chosen.
    PYENV_VERSION=3.13:3.12 "python$version" -m venv --clear "$environments/$1"
    PATH="$environments/$1/bin:$PATH"
    pip install --quiet --no-deps --requirement "colab/runtime_$1.txt"
    pip check
    pip install --quiet --dry-run --report "$work/report.json" .
    only_additions "$1"
    pip install --quiet .
    unchanged "$1"
    mkdir "$work/$1"
    pushd "$work/$1"
    python -m efficientnetv2.main --dataset=fashion_mnist --model_dir=run \
        --backend="$backend" \
        --hparam_str=train.epochs=0.02,train.lr_warmup_epoch=0.01
    python -m efficientnetv2.main --mode=eval --model_dir=run \
        --backend="$backend"
    python -m efficientnetv2.main --mode=export --model_dir=run \
        --formats=saved_model,keras --allow_disagreement
    [ -e run/saved_model/saved_model.pb ] && [ -e run/report.html ]
    popd
    pip install --quiet "$checkout[test]"
    unchanged "$1"
    local statement='from efficientnetv2.data import loading; loading.import_tfds()'
    if ! python -c "$statement" 2> "$work/reason"; then
        # What its message tells the user to do.
        grep -q "pip install 'tensorflow-metadata<1.18'" "$work/reason"
        pip install --quiet 'tensorflow-metadata<1.18'
        python -c "$statement"
    fi
    python -m pytest -q -n auto --dist loadfile ${TESTS:-}
}

for runtime in "$@"; do
    (try "$runtime")
done
echo "Colab's runtimes: $* pass"
