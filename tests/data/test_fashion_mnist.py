"""Fashion-MNIST: its sources, what can go wrong, and the real data."""

import errno
import functools
import gzip
import hashlib
import http.server
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from efficientnetv2.data import fashion_mnist as fm
from efficientnetv2.data import registry
from efficientnetv2.errors import DataError
from tests.conftest import raises

ROOT = pathlib.Path(__file__).resolve().parents[2]
LABELS = "t10k-labels-idx1-ubyte.gz"
SMALL = ("t10k-images-idx3-ubyte.gz", LABELS)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the data, with the real archives or a way to them."""
    folder = registry.data_dir()
    try:
        fm.load_part(folder, "test")
    except DataError as error:
        if "Could not obtain" in str(error):
            pytest.skip(f"neither network nor Debian's package: {error}")
        raise
    return folder


@pytest.fixture(scope="session")
def archives(data_dir, tmp_path_factory):
    """A folder of the four archives, as they officially are."""
    folder = tmp_path_factory.mktemp("archives")
    for name in fm.ARCHIVES:
        (folder / name).write_bytes(fm._read(fm._find(data_dir, name)))
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No network, no package, no tool of Debian; returns an empty data_dir."""
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    (tmp_path / "tools").mkdir()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fm, "INSTALLED", tmp_path / "not-installed")
    return tmp_path / "data"


def as_debian_has_it(content):
    """Returns an archive without name and time in its header."""
    body = content[content.index(b"\0", 10) + 1 :]
    return b"\x1f\x8b\x08\0" + bytes(4) + b"\x02\x03" + body


def fake_tool(tmp_path, name, script):
    tool = tmp_path / "tools" / name
    tool.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    tool.chmod(0o755)


# --- The real data ----------------------------------------------------------


def test_order_and_pixels_are_those_of_tensorflow_datasets(data_dir):
    # Of what fashion_mnist:3.0.1 prepared and earlier versions trained on;
    # every batch, and so a run that is resumed, depends on the order.
    expected = {
        "train": (
            "d6f7acb83157a75006f04dbae6822f88b1bb1651cef953707c39831d938776a3",
            "241e7920b73befd98bd8bc027abcd0cc3ea52ee3cd808c49acfb8ca53811e482",
        ),
        "test": (
            "a84f70bc4eaa1b2c5e671e99525a60f9dbe89328fa62013e4aa30ba11800c4df",
            "b09bb91685fa2a6e62d623ff642c59123fd7ef2d9b0588860fc8914a51e66de8",
        ),
    }
    for part, hashes in expected.items():
        arrays = images, labels = fm.load_part(data_dir, part)
        assert images.shape == (len(labels), 28, 28, 1)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        for array, sha256 in zip(arrays, hashes, strict=True):
            assert hashlib.sha256(array.tobytes()).hexdigest() == sha256
            assert not array.flags.writeable
        assert fm.load_part(data_dir, part)[0] is images


@pytest.mark.parametrize("sub", ["", "manual", "downloads/manual"])
def test_archives_of_the_users_are_read_where_they_lie(archives, nowhere, sub):
    shutil.copytree(archives, nowhere / sub)
    assert fm.is_here(nowhere)
    images, labels = fm.load_part(nowhere, "test")
    content = gzip.decompress((archives / SMALL[0]).read_bytes())
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784)
    assert sorted(map(bytes, pixels)) == sorted(
        map(bytes, images.reshape(-1, 784))
    )
    assert np.bincount(labels).tolist() == [1_000] * 10
    assert not (nowhere / "fashion_mnist").exists()


def test_installed_package_is_restored(archives, nowhere, tmp_path):
    fm.INSTALLED.mkdir()
    for name in fm.ARCHIVES:
        content = (archives / name).read_bytes()
        (fm.INSTALLED / name).write_bytes(as_debian_has_it(content))
        assert fm._read(fm.INSTALLED / name) == content
    assert fm.load_part(nowhere, "test")[0].shape == (10_000, 28, 28, 1)
    assert not nowhere.exists()


# --- Damage -----------------------------------------------------------------


def _flip(content):
    return content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]


@pytest.mark.parametrize("damage", [_flip, lambda content: content[:-1]])
def test_damaged_archive_is_named(archives, nowhere, damage):
    shutil.copytree(archives, nowhere)
    path = nowhere / LABELS
    path.write_bytes(damage(path.read_bytes()))
    with raises(
        DataError, path, "damaged", fm.ARCHIVES[LABELS][0], "Remove it"
    ):
        fm.load_part(nowhere, "test")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=f"{LABELS}: cannot be read: Is a dir"):
        fm.load_part(nowhere, "test")


def test_no_source_at_all(nowhere):
    words = ["Could not obtain Fashion-MNIST", "'apt-get'", *fm.MIRRORS]
    with raises(DataError, *words, *fm.ARCHIVES, nowhere / "fashion_mnist"):
        fm.load_part(nowhere, "train")


@pytest.mark.parametrize("place", [".", "fashion_mnist"])
def test_file_where_a_folder_is_needed(nowhere, place):
    (nowhere / place).parent.mkdir(parents=True, exist_ok=True)
    (nowhere / place).write_text("mine")
    with pytest.raises(DataError, match="Could not write .*--data_dir"):
        fm.load_part(nowhere, "test")
    assert (nowhere / place).read_text() == "mine"


def test_full_disk(nowhere, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fm, "_download", fill)
    with pytest.raises(DataError, match=r"31 MB.*No space left.*--data_dir"):
        fm.load_part(nowhere, "test")


# --- The web and Debian -----------------------------------------------------


class _Mirror(http.server.BaseHTTPRequestHandler):
    def __init__(self, *args, folder, manner, asked):
        self.folder, self.manner, self.asked = folder, manner, asked
        super().__init__(*args)

    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        self.asked.append(name)
        body = (self.folder / name).read_bytes()
        length = len(body)
        if self.manner == "portal":
            body = b"<html>Please log in</html>"
            length = len(body)
        if self.manner == "cut":
            body = body[:1000]
        self.send_response(404 if self.manner == "gone" else 200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(archives, nowhere, monkeypatch):
    """Starts mirrors, one per manner, which are all that is known."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name)
    servers = []

    def start(*manners):
        asked = []
        for manner in manners:
            handler = functools.partial(
                _Mirror, folder=archives, manner=manner, asked=asked
            )
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
        urls = [f"http://127.0.0.1:{each.server_port}/" for each in servers]
        monkeypatch.setattr(fm, "MIRRORS", tuple(urls))
        return urls, asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_from_the_first_mirror_that_has_it(mirror, nowhere):
    urls, asked = mirror("gone", "portal", "cut", "well")
    said = []
    images, _ = fm.load_part(nowhere, "test", said.append)
    folder = nowhere / "fashion_mnist"
    assert said == [f"Fashion-MNIST: from {urls[3]}, verified, in {folder}"]
    assert len(images) == 10_000
    assert {path.name for path in folder.iterdir()} == set(fm.ARCHIVES)
    asked.clear()
    fm._decode.cache_clear()
    assert len(fm.load_part(nowhere, "test", said.append)[0]) == 10_000
    assert not asked and len(said) == 1


def test_download_takes_up_where_it_ended(mirror, nowhere, archives):
    (nowhere / "fashion_mnist").mkdir(parents=True)
    shutil.copy(archives / SMALL[0], nowhere / "fashion_mnist")
    _, asked = mirror("well")
    fm.load_part(nowhere, "test", lambda _: None)
    assert sorted(asked) == sorted(set(fm.ARCHIVES) - {SMALL[0]})


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
@pytest.mark.parametrize("way", ["at hand", "apt-get", "without lists"])
def test_debian_package(archives, nowhere, tmp_path, monkeypatch, way):
    monkeypatch.setattr(fm, "MIRRORS", ())
    root = tmp_path / "package"
    folder = root / fm.INSTALLED.relative_to("/")
    folder.mkdir(parents=True)
    for name in fm.ARCHIVES:
        content = (archives / name).read_bytes()
        (folder / name).write_bytes(as_debian_has_it(content))
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {fm.PACKAGE}\nVersion: 1\nArchitecture: all\n"
        "Maintainer: A <a@example.org>\nDescription: small\n"
    )
    deb = tmp_path / f"{fm.PACKAGE}_1_all.deb"
    subprocess.run(
        ["/usr/bin/dpkg-deb", "-Znone", "-b", root, deb],
        check=True,
        env={"PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )
    fake_tool(tmp_path, "dpkg-deb", 'exec /usr/bin/dpkg-deb "$@"')
    nowhere.mkdir()
    if way == "at hand":
        shutil.copy(deb, nowhere)
    else:
        # Lists of packages are there after `update` into private folders.
        fake_tool(
            tmp_path,
            "apt-get",
            f'case "$*" in *update) touch {tmp_path}/lists; exit;; esac\n'
            f"[ -e {tmp_path}/lists ] || exit 100\ncp {deb} .",
        )
        if way == "apt-get":
            (tmp_path / "lists").touch()
    said = []
    assert len(fm.load_part(nowhere, "test", said.append)[0]) == 10_000
    assert f"Debian's package {fm.PACKAGE}" in said[0]
    stored = nowhere / "fashion_mnist"
    for name in fm.ARCHIVES:
        assert (stored / name).read_bytes() == (archives / name).read_bytes()
    assert len(list(stored.iterdir())) == len(fm.ARCHIVES)


def test_damaged_package_is_named(nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(fm, "MIRRORS", ())
    nowhere.mkdir()
    (nowhere / f"{fm.PACKAGE}_1_all.deb").write_bytes(b"!<arch>\ngarbage")
    fake_tool(tmp_path, "dpkg-deb", 'exec /usr/bin/dpkg-deb "$@"')
    with pytest.raises(DataError, match=r"Debian's .*_1_all\.deb"):
        fm.load_part(nowhere, "test")


def test_two_processes_at_once(mirror, nowhere):
    [url], _ = mirror("well")
    program = (
        "import pathlib, sys\n"
        "from efficientnetv2.data import fashion_mnist as f;"
        "f.MIRRORS, f.INSTALLED = (sys.argv[2],), pathlib.Path('/nowhere');"
        "print(len(f.load_part(pathlib.Path(sys.argv[1]), 'test')[0]))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, nowhere, url],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        output, _ = process.communicate(timeout=120)
        assert output.splitlines()[-1] == "10000"
        assert process.returncode == 0
    folder = nowhere / "fashion_mnist"
    assert {path.name for path in folder.iterdir()} == set(fm.ARCHIVES)
