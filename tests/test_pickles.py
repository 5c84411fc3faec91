"""Checkpoints from untrusted places: whatever a file says, it is read as data or refused with a sentence."""
import builtins
import contextlib
import copyreg
import io
import json
import multiprocessing
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from official_pickle import Persistent, canary, official, official_modules, write_official
from safetensors.torch import load_file, save_file
from torch import nn

from disback.edm import EDMNetwork
from disback.pickles import Call, Name, as_tensor, read_checkpoint, read_pickle

REFERENCE = Path(__file__).parent / "edm_reference"
KEEP = b"\x80\x04"


class Do:
    "Pickles as a call."
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


def text(s): return b"X" + struct.pack("<I", len(s.encode())) + s.encode()
def called(module, name, *args):
    return KEEP + text(module) + text(name) + b"\x93(" + b"".join(map(text, args)) + b"tR."


def refusal(source, read=read_checkpoint):
    "The one sentence with which `source` is refused."
    with pytest.raises(ValueError) as caught: read(source)
    said = str(caught.value)
    assert "\n" not in said and said.isprintable() and len(said) < 700
    assert said.startswith("the data given" if isinstance(source, bytes) else Path(source).name)
    return said


@pytest.fixture
def trace(tmp_path):
    "A file that attacks try to make; it must not be there in the end."
    yield tmp_path / "trace"
    assert not (tmp_path / "trace").exists()


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.ModuleDict({"8x8_conv": nn.Linear(3, 2), "8x8_norm": nn.GroupNorm(1, 2)})
        self.register_buffer("taps", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A small official file."
    file = tmp_path_factory.mktemp("tiny") / "tiny.pkl"
    torch.manual_seed(0)
    write_official(file, Tiny(), "EDMPrecond", dict(img_resolution=8, channel_mult=[1, 2]))
    yield file
    assert not canary(file).exists()


@pytest.mark.parametrize("folder", sorted(p for p in REFERENCE.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_round_trip_of_reference_networks(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    weights, network = load_file(folder / "weights.safetensors"), EDMNetwork(**config)
    network.load_state_dict(weights)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        write_official(tmp_path / "edm.pkl", network, "EDMPrecond", config, protocol=protocol)
        got = read_checkpoint(tmp_path / "edm.pkl")
        assert (got.class_name, got.args, got.kwargs) == ("EDMPrecond", (), config)
        assert [*got.tensors] == [*network.state_dict()] and got.tensors.keys() == weights.keys()
        for k, v in weights.items():
            assert got.tensors[k].dtype == v.dtype and torch.equal(got.tensors[k], v), k
        EDMNetwork(class_name=got.class_name, **got.kwargs).load_state_dict(got.tensors, strict=True)
    assert not canary(tmp_path / "edm.pkl").exists()


def test_the_source_text_would_run_if_it_were_asked_to(tiny):
    "So its absence in the other tests means something."
    with official_modules(): pickle.loads(tiny.read_bytes())
    assert canary(tiny).exists()
    canary(tiny).unlink()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [
    os.system, eval, exec, getattr, setattr, builtins.__import__, builtins.open, subprocess.Popen, torch.load,
    torch.hub.load, torch.serialization.load, np.load, pickle.loads, copyreg.pickle, type, print,
], ids=lambda f: f.__name__)
def test_calls(function, protocol, trace):
    said = refusal(pickle.dumps({"ema": [Do(function, f"touch {trace}")]}, protocol))
    assert f".{function.__name__}, which a checkpoint has no need of: nothing of it was run" in said


@pytest.mark.parametrize("module, name", [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("builtins", "eval"), ("__builtin__", "eval"),
    ("builtins", "set.pop"), ("collections", "OrderedDict.fromkeys"), ("torch.nn.modules", "Linear"),
    ("torch.nn.modules.module", "torch.os.system"), ("torch.nn.modules.module", "warnings"),
    ("torch.nn.modules.a.b", "Linear"), ("torch.nn.modules.linear\n", "Linear"),
    ("torch.nn.modules.linear", "Linear\n"), ("torch.nn.modules.", "Linear"),
    ("torch.nn.modules.lin\u00e9ar", "Linear"), ("torch.optim", "Adam"),
    ("torch._utils", "_rebuild_tensor_v2x"),
    ("torch.storage", "_load_from_bytes.__globals__"), ("torch", "load"), ("", ""), ("numpy", "load"),
    ("numpy.core.multiarray", "fromfile"), ("numpy:ndarray", ""), ("dnnlib.util", "open_url"),
    ("torch_utils.persistence", "_module_to_src_dict"), ("\ud800", "x"), ("a" * 10**6, "b"),
])
def test_names_outside_the_list(module, name):
    encoded = [s.encode("utf-8", "surrogatepass") for s in (module, name)]
    raw = b"".join(b"X" + struct.pack("<I", len(t)) + t for t in encoded)
    said = refusal(KEEP + raw + b"\x93.", read_pickle)
    assert "which a checkpoint has no need of" in said


def test_names_inside_the_list_are_only_written_down():
    for module, name in [("collections", "OrderedDict"), ("builtins", "set"),
                         ("torch.nn.modules.linear", "Linear"), ("torch.optim.adam", "Adam"),
                         ("torch.nn.parameter", "Parameter"), ("torch.nn.modules.never_there", "Never")]:
        node = read_pickle(called(module, name, "a"))
        assert type(node) is Call and node.function == Name(module, name) and node.args == ("a",)
    assert "torch.nn.modules.never_there" not in sys.modules


def test_tricks(trace):
    "Each a way in which restricted readers have been led to act."
    odict, system = b"ccollections\nOrderedDict\n", b"cos\nsystem\n"
    raws = {"nested reductions": odict + b"(cbuiltins\ngetattr\n(" + system + b"S'__call__'\ntRtR.",
            "the result of a call is called": odict + b")R)R.",
            "text is called": b"S'os.system'\n)R.",
            "attributes of a class": odict + b"}S'__setstate__'\n" + odict + b"sb.",
            "attributes of a class, as slots": odict + b"N}S'a'\nK\x01s\x86b.",
            "attributes of a list": b"]}b.",
            "attributes of a dictionary": b"}}b.",
            "attributes of a number": b"K\x01}b.",
            "entries in a class": odict + b"K\x01K\x02s.",
            "appending to a class": odict + b"K\x01a.",
            "appending to a call": odict + b")RK\x01a.",
            "appending to a tuple": b")K\x01a.",
            "adding to a list": b"](K\x01\x90.",
            "names that are numbers": KEEP + b"K\x01K\x02\x93.",
            "names that are calls": KEEP + odict + b")R" + text("x") + b"\x93.",
            "names that are bytes": KEEP + b"C\x02os" + text("system") + b"\x93.",
            "extension codes": KEEP + b"\x82\x01.",
            "extension codes of two bytes": b"\x83\x01\x01.",
            "extension codes of four bytes": b"\x84\x01\x01\x01\x01.",
            "persistent ids": b"Pos.system\n.",
            "persistent ids from the stack": KEEP + text("os.system") + b"Q.",
            "instances": b"(S'touch'\nios\nsystem\n.",
            "objects": b"(" + system + b"S'touch'\no.",
            "objects without a class": b"(o.",
            "new objects": system + b")\x81.",
            "new objects by name": KEEP + system + b")}\x92.",
            "arguments that are no tuple": odict + b"]R.",
            "arguments that are text": KEEP + odict + text("a") + b"R.",
            "named arguments that are a list": KEEP + odict + b")]\x92.",
            "buffers from elsewhere": b"\x80\x05\x97.",
            "buffers made read-only": b"\x80\x05\x98.",
            "a name in a discarded part": system + b"0N.",
            "a name in a discarded marked part": b"N(" + system + b"1.",
            "keys that are lists": b"}]K\x01s.",
            "keys that are calls": b"}" + odict + b")RK\x01s.",
            "keys that are tuples": b"})K\x01s.",
            "keys that are floats": b"}F1.0\nK\x01s.",
            "keys that collide": b"}L2305843009213693951L\nK\x01s.",
            "a set of lists": KEEP + b"\x8f(]\x90.",
            "a frozen set of lists": KEEP + b"(]\x91.",
            "half an entry": b"}(K\x01u.",
            "half a dictionary": b"(K\x01d."}
    for what, raw in raws.items():
        said = refusal(raw, read_pickle)
        if system in raw: assert "asks for " in said, what


def test_data_in_the_form_of_calls():
    "Bytes and objects of old protocols are data; the same names with other arguments are refused."
    encode, make = b"c_codecs\nencode\n", b"ccopyreg\n_reconstructor\n"
    odict, base = b"ccollections\nOrderedDict\n", b"cbuiltins\nobject\n"
    assert read_pickle(encode + b"(V\xff\nVlatin1\ntR.") == b"\xff"
    assert read_pickle(make + b"(" + odict + base + b"NtR.").args == ()
    for raw in (encode + b"(VQQ==\nVbase64\ntR.", encode + b"(Va\ntR.", encode + b"(K\x01Vlatin1\ntR.",
                encode + b"(V\\u2022\nVlatin1\ntR.", make + b"(" + odict + base + b"VtR.", make + b")R.",
                make + b"(" + odict + base + b"}tR.", make + b"(" + odict + odict + b"NtR.",
                make + b"(Vos\n" + base + b"NtR.", b"cbuiltins\nbytes\n(K\x09tR.", base + b"}b."):
        refusal(raw, read_pickle)


def test_broken_programs():
    for raw in (b"", b".", b"0.", b"1.", b"(.", b"2.", b"N(.", b"NN.", b"a.", b"e.", b"s.", b"u.", b"b.",
                b"R.", b"t.", b"l.", b"d.", b"\x85.", b"\x94.", b"q\x00.", b"h\x00.", b"g0\n.",
                b"p-1\nN.", b"Np-1\n.",
                b"Np99999999999\n.", b"N", b"K", b"\xff.", b"Iabc\n.", b"I" + b"9" * 5000 + b"\n.",
                b"L" + b"9" * 5000 + b"L\n.", b"I" + b"9" * 60 + b"\n.", b"Fx\n.",
                b"F" + b"x" * 10**5 + b"\n.", b"S'a\n.", b"Sa\n.", b"S'\\x4'\n.", b"V\\ud8\n.",
                b"X\x01\x00\x00\x00\xff.", b"cos\n.", b"cos",
                b"c\xc3\xa9\nx\n.", b"T\xff\xff\xff\xff.", b"\x8b\xff\xff\xff\xff.", b"N." + b"x",
                pickle.dumps(1) * 2, b"\x80\x04\x95" + b"\xff" * 8 + b"N"):
        refusal(raw, read_pickle)
    assert read_pickle(b"S'\\q'\n.") == "\\q"                               # an odd escape: no warning


BOMBS = {
    "a huge number": b"\x8b" + struct.pack("<i", 10**9) + b"abc.",
    "huge bytes": KEEP + b"\x8e" + struct.pack("<Q", 10**18) + b"abc.",
    "huge text": KEEP + b"\x8d" + struct.pack("<Q", 2**63 - 1) + b"abc.",
    "a huge byte array": b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b"abc.",
    "bytes": b"B" + struct.pack("<I", 10**9) + b"abc.",
    "text": b"X" + struct.pack("<I", 2**32 - 1) + b"abc.",
    "old text": b"T" + struct.pack("<i", 10**9) + b"abc.",
    "a frame": KEEP + b"\x95" + struct.pack("<Q", 10**18),
    "a far place in the memo": b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xfe.",
    "deep tuples": b"(" * 10**4 + b"t" * 10**4 + b".",
    "deep tuples of one": b")" + b"\x85" * 10**4 + b".",
    "deep lists": b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "deep dictionaries": b"}" + b"K\x00}" * 10**4 + b"s" * 10**4 + b".",
    "deep arguments": b"ccollections\nOrderedDict\n" * 5000 + b")" + b"R\x85" * 5000 + b".",
    "deep states": b"ccollections\nOrderedDict\n)R" * 10**4 + b"b" * (10**4 - 1) + b".",
    "marks": b"(" * 10**4,
    "duplicates": b"]" + b"2" * 3 * 10**6 + b".",
    "memo": b"N" + b"\x94" * 3 * 10**6 + b".",
    "dictionaries": b"]" + b"}a" * 10**6 + b".",
    "laughing lists": b"]" + b"".join(b"q%c0](" % i + b"h%c" % i * 10 + b"e" for i in range(90)) + b".",
    "laughing tuples": b")" + b"q\x000h\x00h\x00\x86" * 90 + b".",
    "laughing dictionaries":
        b"}" + b"".join(b"q%c0}(K\x00h%cK\x01h%cu" % (i, i, i) for i in range(90)) + b".",
    "laughing keys": b")" + b"2\x86" * 90 + b"q\x000}h\x00Ns.",
    "laughing arguments": b")" + b"q\x000ccollections\nOrderedDict\nh\x00h\x00\x86R" * 90 + b".",
    "a circle": b"]q\x00h\x00a.",
    "a wide circle": b"]q\x00]h\x00aa.",
    "a circle of entries": b"}q\x00K\x01h\x00s.",
    "a circle of states": b"ccollections\nOrderedDict\n)Rq\x00h\x00b.",
    "a circle through a tuple": b"]q\x00h\x00\x85a."}
WIDE = b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(10**5))
WORD = b"X" + struct.pack("<I", 4 * 10**5) + b"a" * 4 * 10**5
SLOW = {    # a megabyte each
    "a wide list, repeated": b"]q\x00(" + b"N" * 250_000 + b"e0](" + b"h\x00" * 250_000 + b"e.",
    "a wide tuple, repeated": b"(" + b"N" * 250_000 + b"tq\x00(" + b"h\x00" * 250_000 + b"t.",
    "a wide dictionary, repeated": b"}q\x00(" + WIDE + b"u0](" + b"h\x00" * 10**5 + b"e.",
    "a wide set, repeated": KEEP + b"\x8fq\x00(" + b"".join(b"J" + struct.pack("<i", i) for i in range(10**5))
                            + b"\x900](" + b"h\x00" * 10**5 + b"e.",
    "a list as wide as can be": b"](" + b"N" * 500_000 + b"e.",
    "an entry at a time": b"}" + b"".join(b"J" + struct.pack("<i", i) + b"Ns" for i in range(10**5)) + b".",
    "entries of a call": b"ccollections\nOrderedDict\n)R(" + WIDE + b"u.",
    "a wide object, repeated": b"ccopyreg\n_reconstructor\n(cdnnlib.util\nEasyDict\ncbuiltins\ndict\n}("
                               + WIDE + b"utq\x000](" + b"ccopyreg\n_reconstructor\nh\x00R" * 10**4 + b"e.",
    "a list extended by itself": b"]q\x00" + b"(h\x00h\x00e" * 80_000 + b".",
    "a number of a megabyte": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    "a number in a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "a float in a million digits": b"F" + b"9" * 10**6 + b"\n.",
    "a long text, repeated": b"](" + WORD + b"q\x00" + b"h\x00" * 250_000 + b"e.",
    "a long key, repeated": b"}(" + WORD + b"q\x00N" + b"h\x00N" * 160_000 + b"u.",
    "bytes of a long text, repeated": b"c_codecs\nencode\nq\x01(" + WORD + b"q\x02Vlatin1\nq\x03tR0]("
                                      + b"h\x01h\x02h\x03\x86R" * 60_000 + b"e.",
    "duplicates": b"](N" + b"2" * 500_000 + b"e.",
    "a chain in the memo": b")" + b"\x94\x85" * 200_000 + b".",
    "states, one after another": b"ccollections\nOrderedDict\n)R" + b"}b" * 200_000 + b".",
    "marks": b"(" * 250_000 + b"1" * 250_000 + b"N."}


@pytest.mark.parametrize("raw", SLOW.values(), ids=SLOW)
def test_time_in_proportion(raw):
    "Read or refused in as many steps as there are bytes; their square would take hours."
    started = time.process_time()
    try: read_pickle(raw)
    except ValueError as e: assert len(str(e)) < 300
    assert time.process_time() - started < 10


def refuse_all(folder):
    "Read every file of a folder within half a gigabyte more than is taken already."
    import resource
    warnings.simplefilter("error")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29, taken + 2**29))
    for file in sorted(folder.glob("*.pkl")):
        refusal(file, read_pickle if file.stem.isdigit() else read_checkpoint)
    for raw in SLOW.values():
        with contextlib.suppress(ValueError): read_pickle(raw)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited the way Linux does it")
def test_bombs_within_limited_memory(tmp_path, tiny):
    for i, raw in enumerate(BOMBS.values()): (tmp_path / f"{i:03d}.pkl").write_bytes(raw)
    words = ["x" * 10**6] * 10**5
    with official_modules():
        for name, kwargs in [("words", dict(a=words)), ("keys", {"k" * 10**6: words}),
                             ("odd", dict(a={"x": words}))]:
            write_official(tmp_path / f"{name}.pkl", Tiny(), "EDMPrecond", kwargs)
        write_official(tmp_path / "class.pkl", Tiny(), "C" * 10**6, {})
        layer = official(Tiny(), "")
        for level in range(40):                                              # a network of 2**40 layers
            layer = official(Tiny(), "", _modules={"a": layer, "b": layer})
        (tmp_path / "layers.pkl").write_bytes(pickle.dumps({"ema": layer}, 4))
        numbers = torch.ones(3)._typed_storage()
        expanded = Do(torch._utils._rebuild_tensor_v2, numbers, 0, (10**12,), (0,), False, {})
        wide = official(Tiny(), "", _buffers={"b": expanded})
        (tmp_path / "expanded.pkl").write_bytes(pickle.dumps({"ema": wide}, 4))
    child = multiprocessing.get_context("fork").Process(target=refuse_all, args=(tmp_path,))
    child.start()
    child.join(120)
    child.kill()
    assert child.exitcode == 0


def storage(raw):
    "Three numbers of a storage, as a pickle asks for them."
    loaded = Call(Name("torch.storage", "_load_from_bytes"), (raw,))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), (loaded, 0, (3,), (1,), False, None))


def test_hostile_storages(trace):
    good = torch.arange(3.)._typed_storage().__reduce__()[1][0]
    torch.testing.assert_close(as_tensor(storage(good)), torch.arange(3.))
    zipped, whole = io.BytesIO(), io.BytesIO()
    torch.save(torch.ones(3), zipped)
    torch.save([torch.ones(3)], whole, _use_new_zipfile_serialization=False)
    places = 0, good.index(b".") + 1, good.index(b"Q.") + 2    # between the small pickles of a storage
    bad = [pickle.dumps(Do(os.system, f"touch {trace}"), p) for p in range(5)]
    bad += [good[:i] + x + good[i:] for x in bad[2:3] for i in places]
    bad += [good.replace(b"FloatStorage", x) for x in (b"load", b"hub.load", b"DoubleStorage",
                                                       b"QInt8Storage", b"UntypedStorage", b"nn.Module")]
    large = b"\x8a\x08" + b"\xff" * 7 + b"\x7fN"
    bad += [good.replace(b"K\x03N", x) for x in (b"K\x04N", b"K\x02N", b"J\xff\xff\xff\xffN", large, b"NN",
                                                b"\x88N", b"K\x03(K\x00tN", b"K\x03)")]
    bad += [good[:i] for i in range(len(good))]
    bad += [good + b"\0", zipped.getvalue(), whole.getvalue(), b"", None, 3, "text", bytearray(good),
            Call(Name("a", "b"), ())]
    for raw in bad:
        with pytest.raises(ValueError) as caught: as_tensor(storage(raw))
        assert str(caught.value).isprintable(), raw
        if raw in bad[:8]: assert f"a storage asks for {os.name}.system, which" in str(caught.value)
    # Without our look at it beforehand torch would still refuse to run it.
    with pytest.raises(pickle.UnpicklingError): torch.load(io.BytesIO(bad[2]), weights_only=True)


def test_storage_that_asks_for_memory():
    "Torch's reader would make a byte array of 10 GB, or three numbers out of what has none."
    good = torch.arange(3.)._typed_storage().__reduce__()[1][0]
    at = good.index(b".") + 1
    call = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + struct.pack("<q", 10**10)[:5] + b"\x85R."
    large = good[:at] + call + good[at:]
    with pytest.raises(ValueError, match="a storage asks for builtins.bytearray"): as_tensor(storage(large))
    with pytest.raises(ValueError, match="it says that it holds 3 numbers, and does not"):
        as_tensor(storage(good[:-1]))


def test_one_storage_for_many_tensors_is_read_once():
    "Otherwise a short file could ask for any amount of memory."
    raw = torch.arange(3.)._typed_storage().__reduce__()[1][0]
    def tensor(): return Do(torch._utils._rebuild_tensor_v2, loaded(), 0, (3,), (1,), False, {})
    def loaded(): return Do(torch.storage._load_from_bytes, raw)
    buffers = {f"b{i}": tensor() for i in range(50)}
    with official_modules(): data = pickle.dumps({"ema": official(Tiny(), "", _buffers=buffers)}, 4)
    tensors = [v for k, v in read_checkpoint(data).tensors.items() if k.startswith("b")]
    assert len(tensors) == 50 and len({t.data_ptr() for t in tensors}) == 1


def test_files_cut_short(tiny, tmp_path):
    data = tiny.read_bytes()
    some = random.Random(0).sample(range(len(data)), 100)
    for n in sorted({*range(60), *range(len(data) - 60, len(data)), *some}):
        (tmp_path / "cut.pkl").write_bytes(data[:n])
        refusal(tmp_path / "cut.pkl")


def structure(module): return [(k, tuple(v.shape), v.dtype) for k, v in module.tensors.items()]


def test_random_corruptions(tiny):
    "Refused, or read as a network; most that are read differ in a number that only its owner knows."
    data, rng, counts = tiny.read_bytes(), random.Random(0), dict(refused=0, equal=0, other=0)
    right = read_checkpoint(data)
    for i in range(240):
        bad, at = bytearray(data), rng.randrange(len(data))
        if i % 4 == 0: bad[at] ^= 1 << rng.randrange(8)
        if i % 4 == 1: bad[at] = rng.randrange(256)
        if i % 4 == 2: del bad[at:at + rng.choice((1, 2, 8, 100))]
        if i % 4 == 3: bad[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
        try: got = read_checkpoint(bytes(bad))
        except ValueError as e:
            assert str(e).startswith("the data given") and str(e).isprintable() and len(str(e)) < 700
            counts["refused"] += 1
            continue
        json.dumps([got.class_name, got.args, got.kwargs])
        assert all(type(t) is torch.Tensor and t.numel() < len(data) for t in got.tensors.values())
        counts["equal" if structure(got) == structure(right) else "other"] += 1
        if structure(got) != structure(right):    # then a network takes nothing of it
            with pytest.raises(RuntimeError): Loaded().load_state_dict(got.tensors, strict=True)
    assert counts["refused"] > 100 and counts["other"] < 25, counts


class Loaded(Tiny): pass


def test_files_that_are_something_else(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "zip.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.ones(1)}, tmp_path / "new.safetensors")
    (tmp_path / "folder").mkdir()
    for name in "zip.pt", "old.pt", "new.safetensors":
        assert "is a file of weights alone: say whose" in refusal(tmp_path / name)
    with pytest.raises(ValueError, match="folder is a folder, a pipe"): read_pickle(tmp_path / "folder")
    for missing in tmp_path / "none.pkl", str(tmp_path / "none.pkl"):
        with pytest.raises(FileNotFoundError, match=r"no file .*none\.pkl: "): read_checkpoint(missing)


def test_checkpoints_of_another_make(tiny, tmp_path):
    "Everything that a network must have, taken away or replaced."
    def written(**attributes):
        with official_modules(): return pickle.dumps({"ema": official(Tiny(), "", **attributes)}, 4)
    assert read_checkpoint(written()).class_name == "Tiny"
    one, relu = torch.ones(1), nn.ReLU()
    for bad in (dict(_parameters=None), dict(_buffers=[]), dict(_modules={1: None}),
                dict(_modules={"a.b": relu}), dict(_modules={"": relu}), dict(_modules={"a": one}),
                dict(_parameters={"a": 3}),
                dict(_parameters={"a": one}, _buffers={"a": one}), dict(_non_persistent_buffers_set=3),
                dict(_non_persistent_buffers_set={1}), dict(_init_kwargs=[1]), dict(_init_kwargs={"a b": 1}),
                dict(_init_args=3), dict(_init_args=({},)), dict(_init_kwargs={"a": {1}}),
                dict(_modules={"\n": relu}), dict(_modules={"\u00e9": relu})):
        refusal(written(**bad))
    for change in [dict(type="function"), dict(version=5), dict(class_name="os.system"), dict(class_name=3),
                   dict(state=None), dict(state=[])]:
        node = official(Tiny(), "")
        assert type(node) is Persistent
        node.meta |= change
        with official_modules(): refusal(pickle.dumps({"ema": node}, 4))
