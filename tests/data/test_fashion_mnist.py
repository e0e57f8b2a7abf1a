"""Fashion-MNIST: its sources, what can go wrong, and the real data."""

import errno
import functools
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from efficientnetv2.data import fashion_mnist as fm
from efficientnetv2.errors import UserError, nearest

DATA_DIR = Path(
    os.environ.get("EFFICIENTNETV2_DATA_DIR", "~/.cache/efficientnetv2/data")
).expanduser()
ROOT = Path(__file__).resolve().parents[2]
LABELS = "t10k-labels-idx1-ubyte.gz"

# The official archives, as TensorFlow Datasets has them on record.
SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
}


def or_skip(call):
    try:
        return call()
    except fm.DataError as error:
        if "cannot be had" in str(error):
            pytest.skip(f"neither network nor Debian's package: {error}")
        raise


@pytest.fixture(scope="session")
def prepared():
    return or_skip(lambda: fm.prepare(DATA_DIR))


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    or_skip(lambda: fm.collect_archives(DATA_DIR, folder))
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, no package, no tool of Debian; returns a data folder."""
    tools = tmp_path / "tools"
    elsewhere = tmp_path / "elsewhere"
    tools.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PATH", str(tools))
    use_proxy(monkeypatch, 9)
    monkeypatch.setattr(fm, "_INSTALLED", tmp_path / "not-installed")
    return tmp_path / "data"


def use_proxy(monkeypatch, port):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def gzipped(payload, name=None, mtime=0):
    """A gzip file with or without a name field, as RFC 1952 has it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = deflate.compress(payload) + deflate.flush()
    header = b"\x1f\x8b\x08" + (b"\x08" if name else b"\x00")
    header += struct.pack("<I", mtime) + b"\x00\x03"
    header += name.encode() + b"\x00" if name else b""
    trailer = struct.pack("<II", zlib.crc32(payload), len(payload))
    return header + stream + trailer


def deb_file(path, files, suffix=".xz"):
    """Writes a Debian package, byte by byte."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    pack = {".xz": lzma.compress, ".gz": gzip.compress}
    data = pack.get(suffix, bytes)(raw.getvalue())
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar{suffix}": data,
    }
    content = b"!<arch>\n"
    for name, body in members.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}".encode()
        content += f"{len(body):<10}`\n".encode() + body
        content += b"\n" * (len(body) % 2)
    path.write_bytes(content)
    return path


def fake_dataset(folder):
    """What the builder leaves, in small: counts and sizes are consistent."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = []
    for name, count in fm.SPLITS.items():
        shard = folder / f"fashion_mnist-{name}.tfrecord-00000-of-00001"
        shard.write_bytes(b"x" * (16 * count + 5))
        splits.append(
            {"name": name, "numBytes": "5", "shardLengths": [str(count)]}
        )
    info = {"name": "fashion_mnist", "fileFormat": "tfrecord", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text("{}")
    return folder


@pytest.fixture
def fake_work(monkeypatch):
    """Replaces the costly steps; returns the list of those that were run."""
    steps = []

    def collect(data_dir, folder):
        steps.append("collect")
        return "from nowhere", []

    def run_child(function, root, archives):
        steps.append(function)
        fake_dataset(root / "fashion_mnist" / "3.0.1")

    monkeypatch.setattr(fm, "collect_archives", collect)
    monkeypatch.setattr(fm, "_run_child", run_child)
    monkeypatch.setattr(fm, "_finish", lambda data_dir, origin, log: origin)
    return steps


# ------------------------------------------------------------ restoration


@pytest.mark.parametrize("name", sorted(fm.MTIMES))
def test_restored_archive_equals_the_one_with_the_name(name):
    payload = b"fashion" * 1000
    official = gzipped(payload, name.removesuffix(".gz"), fm.MTIMES[name])
    debian = gzipped(payload, mtime=1591345645)
    assert debian != official
    assert fm.restore_archive(debian, name) == official
    assert gzip.decompress(official) == payload


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzipped(b"1", "a-name", 7)]
)
def test_other_content_is_returned_as_it_is(content):
    assert fm.restore_archive(content, LABELS) == content


# -------------------------------------------------------------- .deb files


@pytest.mark.parametrize("suffix", [".xz", ".gz", ""])
def test_deb_is_unpacked_in_python(tmp_path, suffix):
    files = {"./usr/share/a": b"1" * 5000, "./usr/share/b": b""}
    deb = deb_file(tmp_path / "a.deb", files, suffix)
    fm._unpack_deb_in_python(deb, tmp_path / "out")
    for name, content in files.items():
        assert (tmp_path / "out" / name).read_bytes() == content


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here")
def test_debians_tool_and_python_unpack_alike(tmp_path):
    source = tmp_path / "source"
    (source / "DEBIAN").mkdir(parents=True)
    (source / "DEBIAN" / "control").write_text(
        "Package: small\nVersion: 1\nArchitecture: all\n"
        "Maintainer: A <a@example.org>\nDescription: small\n"
    )
    (source / "usr").mkdir()
    (source / "usr" / "file").write_bytes(os.urandom(10_000))
    deb = tmp_path / "small_1_all.deb"
    subprocess.run(
        ["dpkg-deb", "-Zxz", "--root-owner-group", "-b", source, deb],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    fm.unpack_deb(deb, tmp_path / "tool")
    fm._unpack_deb_in_python(deb, tmp_path / "python")
    content = (source / "usr" / "file").read_bytes()
    assert (tmp_path / "tool" / "usr" / "file").read_bytes() == content
    assert (tmp_path / "python" / "usr" / "file").read_bytes() == content


@pytest.mark.parametrize("unpack", [fm.unpack_deb, fm._unpack_deb_in_python])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_deb_is_named(tmp_path, unpack, kept):
    deb = deb_file(tmp_path / "cut.deb", {"./a": os.urandom(20_000)})
    content = deb.read_bytes()
    deb.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(fm.DataError, match=r"cut\.deb: no complete Debian"):
        unpack(deb, tmp_path / "out")


def test_damaged_deb_is_named(tmp_path):
    deb = deb_file(tmp_path / "bad.deb", {"./a": os.urandom(20_000)})
    content = bytearray(deb.read_bytes())
    content[-5000:-4000] = bytes(1000)
    deb.write_bytes(content)
    with pytest.raises(fm.DataError, match=r"bad\.deb: no complete Debian"):
        fm._unpack_deb_in_python(deb, tmp_path / "out")


def test_deb_cannot_write_outside_its_folder(tmp_path):
    deb = deb_file(tmp_path / "evil.deb", {"../evil": b"1"})
    with pytest.raises(fm.DataError, match="outside"):
        fm._unpack_deb_in_python(deb, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_zstd_needs_debians_tool(tmp_path):
    deb = deb_file(tmp_path / "a.deb", {"./a": b"1"}, ".zst")
    with pytest.raises(fm.DataError, match="install dpkg"):
        fm._unpack_deb_in_python(deb, tmp_path / "out")


# ---------------------------------------------------------------- messages


def test_data_error_ends_a_command_with_2():
    assert issubclass(fm.DataError, UserError)
    assert fm.DataError("message").exit_code == 2


def test_nearest_name():
    assert nearest("bach_size", ["batch_size", "epochs"]) == "batch_size"
    assert nearest("EfficientNetV2-S", ["efficientnetv2-s"])
    assert nearest("xyz", ["batch_size"]) == ""


def test_file_in_the_place_of_the_dataset(tmp_path, fake_work):
    file = tmp_path / "fashion_mnist"
    file.write_text("mine")
    with pytest.raises(fm.DataError, match=f"{file} is a file where"):
        fm.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("below", ["", "below/it"])
def test_file_in_the_place_of_a_folder(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(fm.DataError) as caught:
        fm.prepare(file / below)
    assert f"{file} is a file where a folder is needed" in str(caught.value)
    assert file.read_text() == "mine"


def test_remote_folder():
    with pytest.raises(fm.DataError, match="local data_dir"):
        fm.prepare("gs://bucket/data")


def test_folder_that_is_not_writable(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(fm.DataError, match=r"not writable .*another data"):
            fm.prepare(folder)
    finally:
        os.seteuid(user)
    assert not list(folder.iterdir())


def test_too_little_disk_space(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=12_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(fm.DataError, match=r"150 MB .* \(12 MB free\)"):
        fm.prepare(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_disk_runs_full_in_the_middle(monkeypatch, tmp_path, fake_work):
    def run_child(function, root, archives):
        (root / "half").mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fm, "_run_child", run_child)
    with pytest.raises(fm.DataError, match=r"150 MB .*the disk is full"):
        fm.prepare(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_full_disk_is_recognized_in_the_output_of_a_child():
    with pytest.raises(OSError, match="No space left") as caught:
        fm._run(["sh", "-c", "echo x: No space left on device; exit 1"], 9)
    assert caught.value.errno == errno.ENOSPC


def test_no_network_and_no_package(offline):
    start = time.monotonic()
    with pytest.raises(fm.DataError) as caught:
        fm.prepare(offline)
    assert time.monotonic() - start < 15
    message = str(caught.value)
    for part in (
        f"the four archives in {offline}",
        "download from http",
        "no answer",
        "not installed",
        "there is no apt-get here",
        f"into {offline}",
        *SHA256,
    ):
        assert part in message
    assert not offline.exists()


@pytest.mark.parametrize(
    ("answer", "renewed"),
    [
        ("E: Unable to locate package", True),
        ("E: Failed to fetch it  404  Not Found", True),
        ("E: Failed to fetch it  Connection timed out", False),
    ],
)
def test_apt_without_lists_gets_private_ones(
    offline, tmp_path, answer, renewed
):
    tool = tmp_path / "tools" / "apt-get"
    tool.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f"echo '{answer}'\nexit 100\n"
    )
    tool.chmod(0o755)
    with pytest.raises(fm.DataError, match=answer):
        fm.prepare(offline)
    calls = (tmp_path / "calls").read_text().splitlines()
    verbs = [fm.PACKAGE] + ["update", fm.PACKAGE] * renewed
    assert [call.split()[-1] for call in calls] == verbs
    private = [False] + [True, True] * renewed
    assert ["Dir::State::Lists=" in call for call in calls] == private


@pytest.mark.parametrize("sub", ["", "manual", "downloads/manual"])
def test_wrong_checksum_names_file_expected_and_found(offline, sub):
    folder = offline / sub
    folder.mkdir(parents=True)
    for name in fm.MTIMES:
        (folder / name).write_bytes(b"other")
    with pytest.raises(fm.DataError) as caught:
        fm.prepare(offline)
    name = next(iter(fm.MTIMES))
    for part in (
        str(folder / name),
        SHA256[name],
        hashlib.sha256(b"other").hexdigest(),
    ):
        assert part in str(caught.value)
    assert (folder / name).read_bytes() == b"other"


def test_missing_archives_are_named(offline):
    offline.mkdir()
    (offline / LABELS).write_bytes(b"")
    with pytest.raises(fm.DataError, match=r"train-images[^;]* missing"):
        fm.prepare(offline)


@pytest.mark.parametrize("place", ["data", "data/downloads", "elsewhere"])
def test_corrupt_deb_is_named(offline, tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{fm.PACKAGE}_1_all.deb").write_bytes(b"!<arch>\ngarbage")
    with pytest.raises(fm.DataError, match=r"1_all\.deb: no complete Debian"):
        fm.prepare(offline)


def test_other_package_is_named(offline):
    offline.mkdir()
    deb_file(offline / f"{fm.PACKAGE}_2_all.deb", {"./usr/share/x": b"1"})
    with pytest.raises(fm.DataError, match=r"2_all\.deb.*it holds no"):
        fm.prepare(offline)


def test_unknown_split():
    with pytest.raises(fm.DataError, match="Did you mean 'train'"):
        fm.load_arrays(fm.Prepared(builder=None, origin=""), "trian")


def test_failed_child_says_why(tmp_path):
    with pytest.raises(fm.DataError, match="KeyError: '_no_such_function'"):
        fm._run_child("_no_such_function", tmp_path)


# ---------------------------------------------------------- poisoned states


def truncate(folder):
    shard = next(folder.glob("*train*"))
    os.truncate(shard, shard.stat().st_size - 1)


def change_count(folder):
    file = folder / "dataset_info.json"
    file.write_text(file.read_text().replace("60000", "59999"))


def cut_json(folder):
    file = folder / "dataset_info.json"
    file.write_text(file.read_text()[:-20])


POISONS = [
    truncate,
    change_count,
    cut_json,
    lambda folder: next(folder.glob("*test*")).unlink(),
    lambda folder: (folder / "dataset_info.json").unlink(),
    lambda folder: (folder / "features.json").write_text(""),
    lambda folder: (shutil.rmtree(folder), folder.write_text("a file")),
    lambda folder: (shutil.rmtree(folder), folder.mkdir()),
]


@pytest.mark.parametrize("poison", POISONS)
def test_damaged_dataset_is_prepared_again(tmp_path, fake_work, poison):
    folder = fake_dataset(tmp_path / "fashion_mnist" / "3.0.1")
    assert fm._is_complete(folder)
    poison(folder)
    assert not fm._is_complete(folder)
    assert fm.prepare(tmp_path) == "from nowhere, checksums verified"
    assert fm._is_complete(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["fashion_mnist"]


def test_complete_dataset_is_used_as_it_is(tmp_path, fake_work):
    fake_dataset(tmp_path / "fashion_mnist" / "3.0.1")
    assert fm.prepare(tmp_path) == "already prepared"
    assert not fake_work


@pytest.mark.parametrize("complete", [False, True])
def test_leftovers_of_killed_processes_go(tmp_path, fake_work, complete):
    name = tmp_path / "fashion_mnist"
    if complete:
        fake_dataset(name / "3.0.1")
    half = tmp_path / f"{fm._STAGING}abc" / "tfds" / "fashion_mnist"
    half.mkdir(parents=True)
    (half / "half").write_text("half")
    (tmp_path / fm._LOCK).write_text("")
    old = name / "incomplete.ABCDEF_3.0.1"
    living = name / "incomplete.UVWXYZ_3.0.1"
    for folder in (old, living):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    fm.prepare(tmp_path)
    assert bool(fake_work) is not complete
    assert [path.name for path in tmp_path.iterdir()] == ["fashion_mnist"]
    assert {path.name for path in name.iterdir()} == {"3.0.1", living.name}


def test_interrupt_leaves_nothing(monkeypatch, tmp_path, fake_work):
    def interrupt(function, root, archives):
        root.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(fm, "_run_child", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fm.prepare(tmp_path / "new" / "data")
    assert not list(tmp_path.iterdir())


def test_read_only_folder_with_complete_data_is_enough(
    monkeypatch, tmp_path, fake_work
):
    fake_dataset(tmp_path / "fashion_mnist" / "3.0.1")
    (tmp_path / f"{fm._STAGING}abc").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert fm.prepare(tmp_path) == "already prepared"


def test_second_process_waits_and_says_so(tmp_path, fake_work):
    said = []
    waiting = threading.Event()

    def log(line):
        said.append(line)
        waiting.set()

    with fm._locked(tmp_path, said.append):
        other = threading.Thread(target=fm.prepare, args=(tmp_path, log))
        other.start()
        assert waiting.wait(10)
        assert not fake_work
    other.join(10)
    assert fake_work == ["collect", "_build"]
    assert len(said) == 1
    assert "another process is preparing" in said[0]
    assert not (tmp_path / fm._LOCK).exists()


# --------------------------------------------------------------- web host


class WebHost(http.server.BaseHTTPRequestHandler):
    """Stands in for the data's web host, as a proxy between."""

    def __init__(self, *args, folder, manner):
        self.folder = folder
        self.manner = manner
        super().__init__(*args)

    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        body = (self.folder / name).read_bytes()
        if self.manner == "portal":
            body = b"<html>Please log in</html>"
        if self.manner == "damaged" and name != LABELS:
            body = body[:-1] + b"\x00"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.manner == "stalled" and name != LABELS:
            time.sleep(30)
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def web_host(archives, offline, monkeypatch):
    servers = []

    def start(manner):
        handler = functools.partial(WebHost, folder=archives, manner=manner)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.handle_error = lambda *args: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        use_proxy(monkeypatch, server.server_port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_by_tensorflow_datasets(web_host, offline, tmp_path):
    web_host("well")
    folder = tmp_path / "got"
    folder.mkdir()
    origin, faults = fm.collect_archives(offline, folder)
    assert origin.startswith("downloaded from http")
    assert not faults
    assert {path.name for path in folder.iterdir()} == set(SHA256)


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("portal", "something else answers in its place"),
        ("damaged", "NonMatchingChecksumError"),
        ("stalled", "stalled for 2 s"),
    ],
)
def test_broken_web_host(
    web_host, offline, tmp_path, monkeypatch, manner, message
):
    # Long enough for a child to start, or "damaged" would read "stalled".
    seconds = 2 if manner == "stalled" else 60
    monkeypatch.setattr(fm, "_STALL_SECONDS", seconds)
    web_host(manner)
    folder = tmp_path / "got"
    folder.mkdir()
    with pytest.raises(fm.DataError, match=message):
        fm.collect_archives(offline, folder)
    assert not list(folder.iterdir())


# ---------------------------------------------------------------- real data


def test_archives_are_the_official_ones(archives):
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in archives.iterdir()
    }
    assert found == SHA256


@pytest.mark.parametrize("sub", ["manual", "downloads/manual"])
def test_archives_given_by_the_user(archives, offline, tmp_path, sub):
    shutil.copytree(archives, offline / sub)
    folder = tmp_path / "got"
    folder.mkdir()
    origin, faults = fm.collect_archives(offline, folder)
    assert origin == f"from the archives in {offline / sub}"
    assert not faults
    assert {path.name for path in folder.iterdir()} == set(SHA256)


def test_installed_package_after_a_broken_archive(
    archives, offline, tmp_path, monkeypatch
):
    installed = shutil.copytree(archives, tmp_path / "installed")
    nameless = installed / LABELS
    content = nameless.read_bytes()
    body = content[content.index(b"\x00", 10) + 1 :]
    nameless.write_bytes(b"\x1f\x8b\x08" + bytes(5) + b"\x00\x03" + body)
    monkeypatch.setattr(fm, "_INSTALLED", installed)
    for name in SHA256:
        offline.mkdir(exist_ok=True)
        (offline / name).write_bytes(b"broken")
    folder = tmp_path / "got"
    folder.mkdir()
    origin, faults = fm.collect_archives(offline, folder)
    assert origin == f"restored from Debian's {fm.PACKAGE}"
    assert (folder / LABELS).read_bytes() == content
    assert len(faults) == 1
    assert "wrong checksum" in faults[0]


@pytest.mark.parametrize(
    ("split", "count", "of_a_class"),
    [("train", 60_000, 6_000), ("test", 10_000, 1_000)],
)
def test_counts_and_class_balance(prepared, split, count, of_a_class):
    images, labels = fm.load_arrays(prepared, split)
    assert images.shape == (count, 28, 28, 1)
    assert images.dtype == np.uint8
    assert labels.shape == (count,)
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [of_a_class] * 10
    assert images.min() == 0
    assert images.max() == 255


def test_arrays_hold_the_pixels_of_the_archives(prepared, archives):
    images, labels = fm.load_arrays(prepared, "test")

    def content(name, header):
        raw = gzip.decompress((archives / name).read_bytes())
        return np.frombuffer(raw, np.uint8, offset=header)

    pixels = content("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    classes = content(LABELS, 8)
    # TFDS shuffles when it writes, so both are compared in a sorted order.
    ours = np.concatenate([images.reshape(-1, 784), labels[:, None]], axis=1)
    theirs = np.concatenate([pixels, classes[:, None]], axis=1)
    assert sorted(map(bytes, ours.astype(np.uint8))) == sorted(
        map(bytes, theirs)
    )


def test_class_names(prepared):
    assert len(prepared.class_names) == 10
    assert prepared.class_names[0] == "T-shirt/top"
    assert prepared.class_names[9] == "Ankle boot"


def test_second_call_is_quick_and_says_one_line(prepared):
    said = []
    start = time.monotonic()
    again = fm.prepare(DATA_DIR, said.append)
    assert time.monotonic() - start < 5
    assert again.origin == "already prepared"
    folder = DATA_DIR / "fashion_mnist" / "3.0.1"
    assert said == [
        f"Fashion-MNIST: 60,000 + 10,000 images, already prepared in {folder}"
    ]


def test_damage_inside_a_shard_is_found_on_reading(prepared, tmp_path):
    folder = tmp_path / "fashion_mnist" / "3.0.1"
    shutil.copytree(prepared.builder.data_dir, folder)
    shard = next(folder.glob("*-test.*"))
    with shard.open("r+b") as file:
        file.seek(3_000_000)
        file.write(bytes(100))
    damaged = fm.prepare(tmp_path)
    with pytest.raises(fm.DataError, match=r"damaged .* Remove that folder"):
        fm.load_arrays(damaged, "test")


def test_killed_process_and_then_two_at_once(archives, tmp_path):
    shutil.copytree(archives, tmp_path / "manual")
    code = (
        "import sys; from efficientnetv2.data import fashion_mnist as fm;"
        "fm.prepare(sys.argv[1])"
    )

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", code, tmp_path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    killed = start()
    deadline = time.monotonic() + 120
    pattern = f"{fm._STAGING}*/tfds/fashion_mnist/incomplete.*"
    while not list(tmp_path.glob(pattern)):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob(f"{fm._STAGING}*"))

    both = [start(), start()]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert not any("Traceback" in errors for _, errors in outputs)
    folder = tmp_path / "fashion_mnist" / "3.0.1"
    lines = sorted((output.splitlines() for output, _ in outputs), key=len)
    counts = "Fashion-MNIST: 60,000 + 10,000 images"
    origin = f"from the archives in {tmp_path / 'manual'}"
    waiting = (
        f"Fashion-MNIST: another process is preparing it in {tmp_path}; "
        "waiting for it to end"
    )
    assert lines == [
        [f"{counts}, {origin}, checksums verified, prepared in {folder}"],
        [waiting, f"{counts}, already prepared in {folder}"],
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        "fashion_mnist",
        "manual",
    }
    assert fm._is_complete(folder)
