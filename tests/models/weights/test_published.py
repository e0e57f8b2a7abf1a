"""Published weights from a server of their layout."""

import hashlib
import http.server
import pathlib
import tarfile
import threading

import numpy as np
import pytest

import efficientnetv2
from efficientnetv2.errors import WeightsError
from efficientnetv2.models import published, weights
from tests.models.weights.made import randomize, slim_model, tiny


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves an archive in the published layout; returns what was asked."""
    root = tmp_path / "web" / "v2"
    root.mkdir(parents=True)
    model = slim_model()
    randomize(model)
    inside = tmp_path / "efficientnetv2-b0"
    efficientnetv2.to_reference_checkpoint(model, inside / "model")
    archive = root / "efficientnetv2-b0.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(inside, inside.name)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "web"))

        def log_message(self, *_):
            asked.append(self.path)

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        published, "_BASE", f"http://127.0.0.1:{web.server_port}"
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    yield model, archive, asked
    web.shutdown()
    web.server_close()


def test_published_weights_are_cached_and_verified(server, tmp_path, capfd):
    model, archive, asked = server

    def build():
        return slim_model(weights="imagenet")

    def assert_right(loaded):
        for one, two in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(one, two)

    assert_right(build())
    assert len(asked) == 1
    assert "\r" not in capfd.readouterr().err  # no bar in a pipe
    cached = tmp_path / "home" / "models" / archive.name
    note = cached.with_name(f"{cached.name}.sha256")
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    assert note.read_text().strip() == digest
    assert_right(build())
    assert len(asked) == 1
    # Damage is noticed, and the archive fetched again.
    cached.write_bytes(cached.read_bytes()[:-9])
    assert_right(build())
    assert len(asked) == 2
    # Without a note the archive may be half of one.
    note.unlink()
    cached.write_bytes(b"half")
    assert_right(build())
    assert len(asked) == 3
    # Another archive at the same address is refused.
    cached.unlink()
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=digest):
        build()


def test_published_names(server):
    urls = [published.url(*each[:2]) for each in efficientnetv2.list_weights()]
    assert len(set(urls)) == 7 * 3 + 2 + 8 * 2 + 1 + 2 + 5
    with pytest.raises(WeightsError, match="imagenet21k, imagenet21k-ft1k"):
        published.url("efficientnetv2-xl", "imagenet")
    with pytest.raises(WeightsError, match="Did you mean 'imagenet'"):
        slim_model(weights="imagnet")
    # The server has only the one archive.
    with pytest.raises(WeightsError, match=r"-21k\.tgz.*Without internet"):
        slim_model(weights="imagenet21k")


@pytest.mark.parametrize(
    ("name", "classes"),
    [(None, 1000), ("imagenet21k", 21_843), ("imagenet21k-ft1k", 1000)],
)
def test_default_number_of_classes(monkeypatch, name, classes):
    report = weights.LoadReport("", {}, [], [])
    monkeypatch.setattr(weights, "load_into", lambda *_: report)
    monkeypatch.setattr(published, "fetch", lambda *_: pathlib.Path("x"))
    model = tiny(num_classes=None, weights=name)
    assert model.output_shape == (None, classes)
