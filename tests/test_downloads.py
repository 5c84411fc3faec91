"""Downloads against a web server on this machine: cut, resumed, refused, altered, stalled, two at once, on a
full disk; and teachers by their names, as typed."""
import io
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from local_server import serve  # noqa: E402
from official_pickle import write_official  # noqa: E402

from disback import downloads, runs  # noqa: E402
from disback.cli import check_files, main  # noqa: E402
from disback.downloads import fetched  # noqa: E402
from disback.edm import edm_network  # noqa: E402
from disback.files import file_digest  # noqa: E402
from disback.options import Run  # noqa: E402

CONTENT, OTHER = [random.Random(seed).randbytes(3 * 10**6) for seed in (0, 1)]  # the same in every process
NAME, FILE = "edm:cifar10-32x32-uncond-vp", "edm-cifar10-32x32-uncond-vp.pkl"
NET = dict(img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=8, channel_mult=(1, 1),
           num_blocks=1, attn_resolutions=())
CHILD = "import sys; from disback.downloads import fetched; fetched(sys.argv[1])"
TYPED = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)    # a test in the background would have it ignored
from disback.cli import main
from disback.downloads import BASES
BASES["edm"] = sys.argv[1]
main(sys.argv[2:])"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "An empty cache."
    for name, value in dict(DISBACK_CACHE=tmp_path / "cache", NO_PROXY="127.0.0.1").items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pickle(tmp_path_factory):
    "A small network as an official checkpoint."
    file = tmp_path_factory.mktemp("official") / FILE
    write_official(file, edm_network(**NET), "EDMPrecond", NET, dict(more=CONTENT))
    return file


def names(folder): return sorted(f.name for f in folder.iterdir())


def get(server, name="a.pkl", **options): return fetched(f"{server.url}/{name}", **options)


def refused(server, said, *args, **options):
    "The sentence of a download that fails."
    with pytest.raises(ValueError) as error: get(server, *args, **options)
    sentence = str(error.value)
    assert said in sentence and "\n" not in sentence
    return sentence


def begin(cache, cut=10**6):
    "Leave the first megabyte of CONTENT in the cache."
    with serve({"a.pkl": CONTENT}, cut=cut) as server: refused(server, "the connection was cut")
    part = (cache / "a.pkl.part").read_bytes()
    assert CONTENT.startswith(part) and len(part) >= min(cut, 2**16)
    return len(part)


def ranges(server): return [headers.get("Range") for _, headers in server.asked]


def wait_for(condition, seconds=60):
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(.02)


def test_whole_and_once(cache, capfd):
    with serve({"a.pkl": CONTENT}) as server:
        assert get(server).read_bytes() == CONTENT
        said = capfd.readouterr().out.splitlines()
        assert said[0] == f"downloading {server.url}/a.pkl (3.0 MB)" and len(said) == 2
        assert file_digest(cache / "a.pkl") in said[1] and "no SHA-256 of a.pkl is published" in said[1]
        record = (cache / "a.pkl.sha256").read_text()
        assert record == f"{file_digest(cache / 'a.pkl')}  a.pkl\n"
    get(server)    # which is not there any more
    assert names(cache) == ["a.pkl", "a.pkl.sha256"] and capfd.readouterr().out == ""
    (cache / "a.pkl").write_bytes(OTHER)
    refused(server, "it was altered; delete it and a.pkl.sha256 to have it fetched again")
    (cache / "a.pkl").unlink()
    (cache / "a.pkl").mkdir()
    refused(server, "give a regular file")


def test_a_file_put_there_by_hand(cache, capfd):
    cache.mkdir()
    (cache / "a.pkl").write_bytes(CONTENT)
    assert fetched("https://nowhere.invalid/a.pkl").read_bytes() == CONTENT
    assert "no SHA-256 of a.pkl is published" in capfd.readouterr().out
    with pytest.raises(ValueError, match="it was altered; delete it to have"):
        fetched("https://nowhere.invalid/a.pkl", sha256="0" * 64)
    (cache / "a.pkl.sha256").write_bytes(b"")
    with pytest.raises(ValueError, match="not  as it should"): fetched("https://nowhere.invalid/a.pkl")


@pytest.mark.parametrize("cut", [1, 10**6, 3 * 10**6 - 1])
def test_cut_and_resumed(cache, cut):
    with serve({"a.pkl": CONTENT}, cut=cut, piece=2**16 - 1) as server:
        said = refused(server, "(the connection was cut)")
        assert f"are kept as {cache / 'a.pkl.part'}, and the same command goes on from there" in said
        assert f"put it at {cache / 'a.pkl'}" in said
        assert names(cache) == ["a.pkl.part", "a.pkl.part.json"]
        there = (cache / "a.pkl.part").stat().st_size
        server.cut = None
        assert get(server).read_bytes() == CONTENT
        assert ranges(server) == [None, f"bytes={min(there, len(CONTENT) - 1)}-"]
        assert server.asked[1][1]["If-Range"].startswith('"')
    assert names(cache) == ["a.pkl", "a.pkl.sha256"]


@pytest.mark.parametrize("how", [{}, dict(ranges=False), dict(careless=True),
                                 dict(careless=True, tags=False)])
@pytest.mark.parametrize("content", [OTHER, OTHER[:10**5], OTHER + OTHER, OTHER[:1]])
def test_another_version_is_fetched_anew(cache, content, how):
    begin(cache)
    with serve({"a.pkl": content}, **how) as server:
        assert get(server).read_bytes() == content
        assert ranges(server)[0] and len(server.asked) <= 2
    assert names(cache) == ["a.pkl", "a.pkl.sha256"]


def test_servers_that_know_less(cache):
    with serve({"a.pkl": CONTENT}, ranges=False, cut=10**6) as server:    # it sends all of it, asked or not
        refused(server, "the connection was cut")
        server.cut = None
        assert get(server).read_bytes() == CONTENT and ranges(server)[1]
    with serve({"b.pkl": CONTENT}, tags=False, cut=10**6) as server:    # nothing tells its versions apart
        refused(server, "the connection was cut", "b.pkl")
        server.cut = None
        assert get(server, "b.pkl").read_bytes() == CONTENT and ranges(server) == [None, None]
    with serve({"d.pkl": CONTENT}, status=206) as server:
        refused(server, "(it sends a part that was not asked for): nothing has come", "d.pkl")
    with serve({"c.pkl": CONTENT}, length=False) as server:
        assert get(server, "c.pkl").read_bytes() == CONTENT


@pytest.mark.parametrize("part, note", [
    (CONTENT, None), (CONTENT + b"x", None), (OTHER[:10**6], b"{}"), (OTHER[:10**6], b"\xff{"),
    (OTHER[:10**6], b'{"version": null, "size": 3000000}'), (b"", None), (OTHER[:10**6], b"gone"),
    (OTHER[:10**6], b'{"version": "a\\nb", "size": 3000000}'), (OTHER[:9], b'{"version": "a", "size": -3}')])
def test_odd_leftovers(cache, part, note):
    begin(cache)
    (cache / "a.pkl.part").write_bytes(part)
    if note == b"gone": (cache / "a.pkl.part.json").unlink()
    elif note is not None: (cache / "a.pkl.part.json").write_bytes(note)
    with serve({"a.pkl": CONTENT}) as server:
        assert get(server).read_bytes() == CONTENT
        if part.startswith(CONTENT): assert ranges(server) == [f"bytes={len(CONTENT) - 1}-"]
    assert names(cache) == ["a.pkl", "a.pkl.sha256"]


def test_a_wrong_hash_leaves_nothing(cache, capfd):
    with serve({"a.pkl": CONTENT}) as server:
        said = refused(server, "its makers say " + "0" * 64, sha256="0" * 64)
        assert "try again, or fetch it by another way" in said and str(cache / "a.pkl") in said
        assert names(cache) == []
        assert get(server, sha256=sha256(CONTENT).hexdigest()).read_bytes() == CONTENT
    assert names(cache) == ["a.pkl"] and "no SHA-256" not in capfd.readouterr().out


def test_answers_that_are_no_file(cache):
    with serve({"a.pkl": CONTENT}) as server:
        said = refused(server, "(404 Not Found): its makers may have moved it", "b.pkl")
        assert f"find it, and put it at {cache / 'b.pkl'}" in said
        refused(server, "(it redirects without end): nothing has come; try again", "loop/a.pkl")
        refused(server, "(it redirects to 'ftp://127.0.0.1/a.pkl', which is no https)", "away/a.pkl")
        assert names(cache) == []
        assert get(server, "moved/a.pkl").read_bytes() == CONTENT
    for address in (f"http://127.0.0.1.org/{FILE}", f"http://127.0.0.1@a.org/{FILE}", f"file:///tmp/{FILE}"):
        with pytest.raises(ValueError, match="address must be https://"): fetched(address)


def test_no_network(cache):
    with serve({}) as server: pass
    said = refused(server, "(Connection refused): nothing has come")
    assert f"fetch it where there is a network and put it at {cache / 'a.pkl'}" in said
    with pytest.raises(ValueError, match="nowhere.invalid/a.pkl .*: nothing has come; try again"):
        fetched("https://nowhere.invalid/a.pkl")
    assert names(cache) == []


def test_a_server_that_hangs(cache):
    with serve({"a.pkl": CONTENT}, hang=30.) as server:
        start = time.monotonic()
        refused(server, "(nothing came for 0.3 seconds): nothing has come", timeout=.3)
        server.hang, server.cut, server.stall = 0., 2 * 10**6, 30.
        refused(server, "(nothing came for 0.3 seconds): 1.0 MB are kept", timeout=.3)
        assert time.monotonic() - start < 10
        server.cut = None
        assert get(server).read_bytes() == CONTENT and ranges(server)[2] == f"bytes={2**20}-"


def test_a_folder_that_cannot_be_written(cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISBACK_CACHE", str(tmp_path / "file" / "cache"))
    with serve({"a.pkl": CONTENT}) as server:
        refused(server, "another folder by the environment variable DISBACK_CACHE")


def test_files_that_may_not_grow(cache):
    def little(): resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 10**6, 2 * 10**6))
    with serve({"a.pkl": CONTENT}) as server:
        done = subprocess.run([sys.executable, "-c", CHILD, f"{server.url}/a.pkl"], preexec_fn=little,
                              capture_output=True, text=True, timeout=120)
        said = done.stderr.splitlines()[-1]
        assert "(File too large)" in said and "DISBACK_CACHE" in said and "2.0 MB are kept as" in said
        assert (cache / "a.pkl.part").read_bytes() == CONTENT[:2 * 10**6]
        assert get(server).read_bytes() == CONTENT and ranges(server)[1] == "bytes=2000000-"


def test_a_full_disk(cache):
    mount = f"mount -t tmpfs -o size=2m none {cache}"
    cache.mkdir()
    possible = shutil.which("unshare") and not subprocess.run(["unshare", "-rm", *mount.split()]).returncode
    if not possible: pytest.skip("a small disk cannot be made here")
    with serve({"a.pkl": CONTENT}) as server:
        inside = f'{mount} && "$@"; status=$?; ls {cache} >&2; exit $status'
        command = ["unshare", "-rm", "sh", "-c", inside, "sh"]
        done = subprocess.run([*command, sys.executable, "-c", CHILD, f"{server.url}/a.pkl"],
                              capture_output=True, text=True, timeout=120)
    *_, said, part = done.stderr.splitlines()[:-1]
    assert done.returncode == 1 and part == "a.pkl.part"
    assert "(No space left on device)" in said and f"{cache} cannot take it" in said and "make room" in said


def child(server):
    command = [sys.executable, "-c", CHILD, f"{server.url}/a.pkl"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once(cache, capfd):
    with serve({"a.pkl": CONTENT}, pause=.05) as server:
        other = child(server)
        wait_for(lambda: server.asked)
        assert get(server).read_bytes() == CONTENT and len(server.asked) == 1
        assert other.communicate(timeout=60) and other.returncode == 0
    assert "another process is downloading a.pkl: waiting for it" in capfd.readouterr().out
    assert names(cache) == ["a.pkl", "a.pkl.sha256"]


def test_the_other_one_throws_it_away(cache):
    with serve({"a.pkl": CONTENT}, pause=.02) as server:
        refusals = []
        def fail(): refusals.append(refused(server, "its makers say", sha256="0" * 64))
        other = threading.Thread(target=fail)
        other.start()
        wait_for(lambda: server.asked)
        assert get(server).read_bytes() == CONTENT and ranges(server) == [None, None]
        other.join()
    assert len(refusals) == 1 and names(cache) == ["a.pkl", "a.pkl.sha256"]


class Reluctant(io.FileIO):
    "A file that takes a little at a time, as one on a nearly full disk does."
    def write(self, piece): return super().write(piece[:70_000])


def test_writes_that_take_a_part(tmp_path):
    with serve({"a.pkl": CONTENT}) as server, Reluctant(tmp_path / "a", "ab") as out:
        downloads._receive(f"{server.url}/a.pkl", out, tmp_path / "note", 5.)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_the_other_process_is_killed(cache, capfd):
    with serve({"a.pkl": CONTENT}, cut=2 * 10**6, stall=60.) as server:
        other = child(server)
        part = cache / "a.pkl.part"
        wait_for(lambda: part.exists() and part.stat().st_size)
        waiting = threading.Thread(target=get, args=[server])
        waiting.start()
        time.sleep(.5)
        assert len(server.asked) == 1    # nothing is fetched twice
        server.cut = None
        other.kill()
        waiting.join(60)
        assert ranges(server) == [None, f"bytes={2**20}-"]
        other.communicate()
    assert (cache / "a.pkl").read_bytes() == CONTENT
    assert "another process is downloading a.pkl: waiting for it" in capfd.readouterr().out


def typed(server, *args):
    command = [sys.executable, "-c", TYPED, server.url, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_interrupted_in_the_middle(cache, tmp_path, pickle, monkeypatch):
    content = pickle.read_bytes()
    with serve({FILE: content}, cut=len(content) // 2, stall=60.) as server:
        part = cache / f"{FILE}.part"
        command = "import", NAME, "--out", tmp_path / "teacher"
        process = typed(server, *command)
        wait_for(lambda: part.exists() and part.stat().st_size)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and len(said.splitlines()) == 1
        assert f"download interrupted: 1.0 MB are kept as {part}, and the same command goes on" in said
        assert not (tmp_path / "teacher").exists()
        server.cut = None
        monkeypatch.setitem(downloads.BASES, "edm", server.url)
        main([*map(str, command)])
        assert ranges(server) == [None, f"bytes={2**20}-"]
    assert (cache / FILE).read_bytes() == content and (tmp_path / "teacher" / "teacher.safetensors").exists()


def test_progress(cache, capfd, monkeypatch):
    monkeypatch.setenv("DISBACK_PROGRESS", "1")
    monkeypatch.setattr(runs, "PAUSE", 0)
    with serve({"a.pkl": CONTENT, "b.pkl": CONTENT}) as server:
        get(server)
        assert "MiB: 3 of 3 (100 %)" in capfd.readouterr().err
        monkeypatch.setenv("DISBACK_PROGRESS", "0")
        get(server, "b.pkl")
        assert capfd.readouterr().err == ""


def ended(capfd, *args):
    "The sentence with which a command ends."
    with pytest.raises(SystemExit) as end: main([str(a) for a in args])
    (said,) = capfd.readouterr().err.splitlines()
    assert end.value.code == 1 and said.startswith("disback: ")
    return said


def test_a_file_of_openai_is_known_by_its_name(cache, tmp_path, monkeypatch, capfd):
    torch.save({"input_blocks.0.0.weight": torch.ones(2)}, whole := io.BytesIO())
    with serve({"64x64_diffusion.pt": whole.getvalue()}) as server:
        monkeypatch.setitem(downloads.BASES, "openai", server.url)
        monkeypatch.setitem(downloads.FILES, "openai", {"64x64_diffusion": "64x64_diffusion.pt"})
        said = ended(capfd, "import", "openai:64x64_diffusion", "--out", tmp_path / "x")
    assert "input_blocks.0.0.bias is absent there and (192,) in the network" in said  # of imagenet64_adm


def test_a_teacher_by_its_name(cache, tmp_path, pickle, monkeypatch, capfd):
    with serve({FILE: pickle.read_bytes()}) as server:
        monkeypatch.setitem(downloads.BASES, "edm", server.url)
        main(["import", NAME, "--out", str(tmp_path / "one")])
        assert f"downloading {server.url}/{FILE}" in capfd.readouterr().out
        said = ended(capfd, "import", "edm:cifar10-32x32-cond-vp", "--out", tmp_path / "x")
        assert "404" in said and str(cache / "edm-cifar10-32x32-cond-vp.pkl") in said
        said = ended(capfd, "import", "edm:cifar10-32x32-vp-uncond", "--out", tmp_path / "x")
        assert "did you mean edm:cifar10-32x32-" in said and "imagenet-64x64-cond-adm" in said
    main(["import", NAME, "--out", str(tmp_path / "two")])    # without network
    main(["import", str(pickle), "--out", str(tmp_path / "three")])
    weights = {file_digest(tmp_path / run / "teacher.safetensors") for run in ("one", "two", "three")}
    assert len(weights) == 1 and "downloading" not in capfd.readouterr().out
    said = ended(capfd, "import", "edm:ffhq-64x64-uncond-vp", "--out", tmp_path / "x")
    assert "Connection refused" in said and f"put it at {cache / 'edm-ffhq-64x64-uncond-vp.pkl'}" in said
    assert "img512-xxl-dino" in ended(capfd, "import", "edm2:", "--out", tmp_path / "x")
    assert "edm: alone lists" in ended(capfd, "import", "emd:x", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    check_files(Run(recipe="digits", out=tmp_path / "x", teacher=NAME))
    with pytest.raises(FileNotFoundError, match="--reference wants a file that is there"):
        Run(recipe="digits", out=tmp_path / "x", reference=NAME).check()
