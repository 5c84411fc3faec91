"""Files of strangers, about a megabyte each and as bad as can be: refused soon, in little memory, in a line.

Each is read in a process forked from this one. Its time is that of its own computing (a busy machine is no
fault), its memory what the reading adds to what was there before."""

import io
import json
import os
import pickle
import resource
import select
import signal
import struct
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from official_pickle import EasyDict, official, official_modules  # noqa: E402

SECONDS, MEGABYTES, PATIENCE = 5, 500, 60
MB = 10**6
BAD_TEXT = "\x1b[31mred\x1b]0;title\x07\r\n\x00\u202e"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What a file may let be made, is made in a folder of the test."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(autouse=True, scope="module")
def ready():
    """What torch imports for the first network without memory is imported here, not in each child."""
    with torch.device("meta"):
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Conv2d(2, 2, 1), torch.nn.GroupNorm(1, 2))


# One reading in a process of its own


def status(key):
    """A number of /proc/self/status, in megabytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 1024


def child(read, out):
    """Read, and tell what was said, how long it took and what memory was needed."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = status("VmRSS")
    size = status("VmSize") * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (int(size) + 6 * 2**30,) * 2)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    sys.stdout = sys.stderr = io.StringIO()
    warnings.simplefilter("ignore")  # what is left out is told by a warning
    try:
        read()
        said = ["accepted", sys.stderr.getvalue()]
    except SystemExit as e:
        said = ["SystemExit", sys.stderr.getvalue() + (e.code if isinstance(e.code, str) else "")]
    except BaseException as e:
        said = [type(e).__name__, str(e)]
    spent = time.process_time()
    os.write(out, json.dumps([*said, spent, status("VmHWM") - before]).encode())
    os._exit(0)


def reading(read):
    """`kind, message, seconds, megabytes` of a reading; the process is ended when it takes too long."""
    into, out = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads: those of the test's worker only wait
        pid = os.fork()
    if not pid:
        try:
            child(read, out)
        finally:
            os._exit(1)
    os.close(out)
    began, data = time.monotonic(), b""
    while time.monotonic() - began < PATIENCE and cpu(pid) < 4 * SECONDS:
        ready, _, _ = select.select([into], [], [], 0.5)
        more = os.read(into, 65536) if ready else None
        if more == b"":
            break
        data += more or b""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(into)
    return json.loads(data) if data else ["no answer", "", time.monotonic() - began, 0.0]


def cpu(pid):
    """Seconds of computing of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refused(read, accepted=False):
    """The sentence by which a file is refused; if `accepted`, it may also be read, in the same limits."""
    kind, message, seconds, megabytes = reading(read)
    assert seconds < SECONDS and megabytes < MEGABYTES, (kind, message[:200], seconds, megabytes)
    if accepted and kind == "accepted":
        return message
    message = message.strip()
    assert kind in ("ValueError", "FileNotFoundError", "SystemExit"), (kind, message[:300])
    assert message and message.isprintable() and len(message) < 1000, (kind, message[:300])
    return message


def but_slow(names, *slow):
    """Names of files, of which some take seconds."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


# Pickles


def wide(item):
    """A list of half a million bytes, and as many references to it."""
    return b"]q\0(" + item * (MB // 2) + b"e0](" + b"h\0" * (MB // 4) + b"e."


def doubled():
    """Lists of two references to the list before: a thousand levels."""
    return (
        b"]q\0"
        + b"".join(
            b"0](h" + bytes([i % 250]) + b"h" + bytes([i % 250]) + b"eq" + bytes([(i + 1) % 250])
            for i in range(MB // 10)
        )
        + b"."
    )


def colliding():
    """A dictionary whose keys all have the hash 0: multiples of 2**61 - 1."""
    key = lambda i: b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little") + b"N"
    return b"}(" + b"".join(map(key, range(1, MB // 13))) + b"u."


def colliding_set():
    """A set of such keys."""
    key = lambda i: b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little")
    return b"\x80\x04\x8f(" + b"".join(map(key, range(1, MB // 12))) + b"\x90."


def claimed(**sizes):
    """An official checkpoint that claims a network and holds none of it."""

    class Empty(torch.nn.Module):
        pass

    config = (
        dict(
            img_resolution=8,
            img_channels=3,
            model_channels=1024,
            channel_mult=[2, 2],
            num_blocks=1,
            attn_resolutions=[],
        )
        | sizes
    )
    with official_modules():
        return pickle.dumps({"ema": official(Empty(), "x", "EDMPrecond", _init_kwargs=EasyDict(config))}, 4)


def tensor_claims():
    """A tensor of a terabyte over a storage of four bytes."""
    data = pickle.dumps(torch.ones(1), 2)
    return data.replace(b"K\x01\x85", b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85", 1)


PICKLES = dict(
    wide_list=wide(b"N"),
    wide_tuple=b"(" + b"N" * (MB // 2) + b"tq\0](" + b"h\0" * (MB // 4) + b"e.",
    doubled=doubled(),
    deep=b"](" * (MB // 3) + b"e" * (MB // 3) + b".",
    deep_tuple=b")" + b"\x85" * MB + b".",
    deep_dict=b"}" + b"N}" * (MB // 4) + b"s" * (MB // 4) + b".",
    colliding_keys=colliding(),
    colliding_set=colliding_set(),
    memo=b"N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(MB // 5)) + b".",
    long_number=b"I" + b"9" * MB + b"\n.",
    long4=b"\x8b" + struct.pack("<i", MB) + b"\x7f" * MB + b".",
    long_float=b"F" + b"9" * MB + b"\n.",
    promised_bytes=b"\x8e" + struct.pack("<Q", 2**62) + b"x" * MB,
    promised_text=b"\x8d" + struct.pack("<Q", 2**40) + b"x",
    frame=b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    marks=b"(" * MB + b".",
    stack=b"N" * MB + b".",
    names=b"c" + b"a" * (MB // 2) + b"\n" + b"b" * (MB // 2) + b"\n.",
    many_names=b"".join(b"cm%d\nn\n0" % i for i in range(MB // 10)) + b"N.",
    controls=b"c\x1b[31m\xe2\x80\xae\n\x1b]0;x\x07\n.",
    code=b"cos\nsystem\n(S'touch ran'\ntR.",
    calls=b"ccollections\nOrderedDict\nq\0" + b"0h\0)R" * (MB // 5) + b".",
    claimed=claimed(),
    claimed_blocks=claimed(num_blocks=10**6),
    claimed_side=claimed(img_resolution=10**9),
    claimed_levels=claimed(channel_mult=[2] * 10**5),
    tensor_claims=tensor_claims(),
    nothing=b"",
    noise=os.urandom(MB),
)


@pytest.mark.parametrize("name", PICKLES)
def test_pickle(name, tmp_path):
    from disback.edm import load_edm

    (tmp_path / "x.pkl").write_bytes(PICKLES[name])
    refused(lambda: load_edm(tmp_path / "x.pkl"))
    assert not Path("ran").exists()


# Statistics


def npy(shape, version=1, more=""):
    """The header of an array."""
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, {more}}}".encode("latin-1")
    head += b" " * (64 - (len(head) + 12) % 64) + b"\n"
    size = struct.pack("<H", len(head)) if version == 1 else struct.pack("<I", len(head))
    return b"\x93NUMPY" + bytes([version, 0]) + size + head


def archive(**members):
    """A zip archive, packed; a member may be a number of zeros behind a header."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items():
            head, zeros = content if isinstance(content, tuple) else (content, 0)
            with z.open(f"{name}.npy", "w", force_zip64=True) as f:
                f.write(head)
                for _ in range(zeros // 2**24):
                    f.write(b"\0" * 2**24)
    return data.getvalue()


def crowded_archive():
    """An archive of many empty members."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for i in range(10**4):
            z.writestr(f"{i}.npy", b"")
    return data.getvalue()


GOOD_SIGMA = npy("(2, 2)") + np.eye(2).tobytes()
ARCHIVES = dict(
    negative=lambda: archive(mu=(npy("(-1,)"), 2**29), sigma=b""),
    bomb=lambda: archive(mu=(npy("(2,)"), 2**29), sigma=GOOD_SIGMA),
    claimed=lambda: archive(mu=npy("(8192,)"), sigma=npy("(8192, 8192)")),
    huge=lambda: archive(mu=npy(f"({10**12},)"), sigma=GOOD_SIGMA),
    overflow=lambda: archive(mu=npy(f"({2**62}, {2**62})"), sigma=GOOD_SIGMA),
    deep=lambda: archive(mu=npy("(" * 5000 + ")" * 5000), sigma=GOOD_SIGMA),
    long_header=lambda: archive(mu=npy("(2,)", 2, "'x': " + "[" * 400000 + "]" * 400000), sigma=GOOD_SIGMA),
    wide_header=lambda: archive(mu=npy("(" + "1, " * 300000 + ")", 3), sigma=GOOD_SIGMA),
    digits=lambda: archive(mu=npy("(" + "9" * MB + ",)", 2), sigma=GOOD_SIGMA),
    crowded=crowded_archive,
    objects=lambda: archive(mu=npy("(2,)").replace(b"<f8", b"|O "), sigma=GOOD_SIGMA),
    indefinite=lambda: archive(
        mu=npy("(2,)") + bytes(16), sigma=npy("(2, 2)") + np.array([[1.0, 3], [3, 1]]).tobytes()
    ),
    overlong=lambda: archive(
        mu=npy("(2,)") + np.full(2, 1e308).tobytes(), sigma=npy("(2, 2)") + np.full(4, np.nan).tobytes()
    ),
    noise=lambda: os.urandom(MB),
    controls=lambda: archive(**{BAD_TEXT.replace("\0", ""): b"x"}),
)


@pytest.mark.parametrize("name", ARCHIVES)
def test_statistics(name, tmp_path):
    from disback.evaluation import load_statistics

    (tmp_path / "x.npz").write_bytes(ARCHIVES[name]())
    refused(lambda: load_statistics(tmp_path / "x.npz"))


# JSON of any kind


def nested(n, opening="[", closing="]"):
    return opening * n + closing * n


JSONS = dict(
    deep=nested(MB // 2),
    deep_dict='{"a":' * (MB // 6) + "1" + "}" * (MB // 6),
    digits="9" * MB,
    wide="[" + "0," * (MB // 2) + "0]",
    text='"' + "\\u001b" * (MB // 6) + '"',
    empty="",
    number="1e999",
    not_a_number="NaN",
    truncated='{"a": ',
    a_list="[]",
    null="null",
    keys="{" + ",".join(f'"{i}": 0' for i in range(MB // 12)) + "}",
    not_text=b"\xff" * MB,
    controls=json.dumps({BAD_TEXT: BAD_TEXT}),
)


def write(file, content):
    """Write text or bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def images(folder):
    """Twelve images."""
    from PIL import Image

    for i in range(12):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i:02d}.png")


def labels(rows):
    return json.dumps(dict(labels=rows))


TABLES = JSONS | dict(
    double=labels([["00.png", 0]] * (MB // 15)),
    controls_in_name=labels([[BAD_TEXT, 0]]),
    controls_in_label=labels([["00.png", BAD_TEXT]]),
    digits_in_label='{"labels": [["00.png", ' + "9" * MB + "]]}",
    classes=labels([[f"{i:02d}.png", 10**6 - 1 - i] for i in range(12)]),
    negative=labels([["00.png", -1]]),
    pairs=labels([[["00.png"], 0]]),
    deep_label='{"labels": [["00.png", ' + nested(MB // 3) + "]]}",
)


@pytest.mark.parametrize("name", but_slow(TABLES, "classes"))
def test_label_table(name, tmp_path):
    from disback.data import load_data

    (tmp_path / "i").mkdir()
    images(tmp_path / "i")
    write(tmp_path / "i" / "dataset.json", TABLES[name])
    # many empty classes are odd, no more
    refused(lambda: load_data(tmp_path / "i", labels=True), accepted=name == "classes")


@pytest.mark.slow
def test_label_table_that_unpacks_to_half_a_gigabyte(tmp_path):
    from disback.data import load_data

    (tmp_path / "i").mkdir()
    images(tmp_path / "i")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for file in (tmp_path / "i").iterdir():
            z.write(file, file.name)
        with z.open("dataset.json", "w") as f:
            f.write(b"[")
            for _ in range(500):
                f.write(b"[]," * (MB // 3))
            f.write(b"[]]")
    refused(lambda: load_data(tmp_path / "x.zip", labels=True))


# Paths


def path_folder(folder):
    """A small path, written by the library."""
    from disback.networks import ResMLP
    from disback.paths import DegradationPath, Node

    net = ResMLP(2, 8, 1, sigma_data=1.0)
    DegradationPath(net, [Node(i, i, float(i), float(i), net.state_dict) for i in range(2)]).save(folder)


def forged(**changes):
    """What changes a manifest and seals it again."""

    def change(folder):
        from disback.paths import seal

        manifest = json.loads((folder / "path.json").read_text())
        manifest |= {k: v(manifest[k]) if callable(v) else v for k, v in changes.items()}
        write(folder / "path.json", json.dumps(manifest | dict(sha256=seal(manifest))))

    return change


def network(name="ResMLP", **args):
    return dict(name=name, args=args)


def stacked(n):
    """Students in students."""
    inner = network(dim=2)
    for _ in range(n):
        inner = network("OneStep", denoiser=inner, sigma_init=1.0)
    return inner


def other_node(**changes):
    return lambda nodes: [nodes[0], nodes[1] | changes]


MANIFESTS = {
    f"json_{k}": (lambda v: lambda folder: write(folder / "path.json", v))(v) for k, v in JSONS.items()
} | dict(
    wide=forged(network=network(dim=2, width=60000)),
    long=forged(network=network(dim=2, width=8, depth=10**6)),
    dim=forged(network=network(dim=10**10)),
    text=forged(network=network(dim="2")),
    none=forged(network=network(dim=None)),
    classes=forged(network=network(dim=2, n_classes=10**10)),
    stacked=forged(network=stacked(150)),
    counts=forged(network=network(dim=2, n_classes=dict(counts=[1] * (MB // 3), names=["a"] * (MB // 3)))),
    unet=forged(network=network("UNet", shape=[1, 2**14, 2**14], channels=[8192] * 8)),
    unknown=forged(network=network(BAD_TEXT)),
    import_=forged(network=network("os.system", command="touch ran")),
    more=forged(network=network(**{BAD_TEXT: 1})),
    edm=forged(
        network=network(
            "EDMNetwork", img_resolution=64, img_channels=3, model_type="SongUNet", model_channels=4096
        )
    ),
    version=forged(version=BAD_TEXT),
    format=forged(format=BAD_TEXT),
    many=forged(nodes=lambda nodes: nodes * (MB // 150)),
    no_nodes=forged(nodes=[]),
    rows=forged(nodes=[[]] * 10),
    index=forged(nodes=other_node(index=True)),
    step=forged(nodes=other_node(step="1")),
    drift=forged(nodes=other_node(drift=float("nan"))),
    gap=forged(nodes=other_node(gap=-1.0)),
    digits=forged(nodes=other_node(step=10**4000)),
    file_type=forged(nodes=other_node(file=[1])),
    outside=forged(nodes=other_node(file="../../x")),
    device=forged(nodes=other_node(file="/dev/zero")),
    sha=forged(nodes=other_node(sha256="0" * MB)),
    controls=forged(nodes=other_node(file=BAD_TEXT)),
    teacher=forged(teacher=BAD_TEXT),
    sealed=lambda folder: write(
        folder / "path.json", (folder / "path.json").read_text().replace("ResMLP", "ResNet")
    ),
)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest(name, tmp_path):
    from disback.paths import DegradationPath

    path_folder(tmp_path)
    MANIFESTS[name](tmp_path)

    def read():
        path = DegradationPath.open(tmp_path)
        for i in range(len(path)):
            path.load_into(path.network, i)

    # a teacher's name that nobody reads is no harm
    refused(read, accepted=name == "teacher")
    assert not Path("ran").exists()


# Networks of diffusers

UNET = dict(
    _class_name="UNet2DModel",
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=[8, 8],
    norm_num_groups=4,
    layers_per_block=1,
    down_block_types=["DownBlock2D"] * 2,
    up_block_types=["UpBlock2D"] * 2,
)
CONFIGS = {f"json_{k}": v for k, v in JSONS.items()} | {
    k: json.dumps(UNET | v)
    for k, v in dict(
        channels=dict(block_out_channels=[8192] * 2),
        layers=dict(layers_per_block=64, block_out_channels=[2048, 2048]),
        groups=dict(norm_num_groups=0),
        levels=dict(
            block_out_channels=[8] * 10**5,
            down_block_types=["DownBlock2D"] * 10**5,
            up_block_types=["UpBlock2D"] * 10**5,
        ),
        inputs=dict(in_channels=10**9),
        outputs=dict(out_channels=10**9),
        side=dict(sample_size=10**9),
        sides=dict(sample_size=[8] * 10**5),
        embedded=dict(num_class_embeds=10**10),
        embedding=dict(num_class_embeds=2, class_embed_type="timestep"),
        head=dict(attention_head_dim=0),
        block=dict(down_block_types=[BAD_TEXT] * 2),
        blocks=dict(down_block_types="x" * MB),
        name=dict(_class_name=BAD_TEXT),
        kind=dict(_class_name=[1]),
        unknown={f"key{i}": 1 for i in range(MB // 14)},
        controls={BAD_TEXT: 1},
        text=dict(layers_per_block="1"),
        nan=dict(norm_eps=float("nan")),
        train=dict(num_train_timesteps=10**12),
        freq=dict(time_embedding_type="fourier"),
    ).items()
}


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_configuration(name, tmp_path):
    from disback.files import save_tensors
    from disback.pipelines import load_pipeline
    import diffusers  # noqa: F401 here, so that no child pays for it
    from diffusers import UNet2DModel  # noqa: F401

    write(tmp_path / "unet" / "config.json", CONFIGS[name])
    save_tensors(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", dict(a=torch.ones(2)))
    write(
        tmp_path / "scheduler" / "scheduler_config.json",
        json.dumps(dict(_class_name="DDPMScheduler", prediction_type="epsilon")),
    )
    refused(lambda: load_pipeline(tmp_path))


SCHEDULERS = {f"json_{k}": v for k, v in JSONS.items()} | {
    k: json.dumps(dict(_class_name="DDPMScheduler") | v)
    for k, v in dict(
        steps=dict(num_train_timesteps=10**12),
        betas=dict(trained_betas=[0.1] * (MB // 5) + [2.0]),
        start=dict(beta_start=float("nan")),
        name=dict(_class_name=BAD_TEXT),
        schedule=dict(beta_schedule=BAD_TEXT),
        kind=dict(prediction_type=BAD_TEXT),
        end=dict(beta_end="x"),
    ).items()
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name, tmp_path):
    from diffusers import UNet2DModel
    from disback.pipelines import load_pipeline

    UNet2DModel(**{k: v for k, v in UNET.items() if k[0] != "_"}).save_pretrained(tmp_path / "unet")
    write(tmp_path / "scheduler" / "scheduler_config.json", SCHEDULERS[name])
    refused(lambda: load_pipeline(tmp_path))


# Run folders


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of each stage."""
    from disback import options as o
    from disback import stages

    folder = tmp_path_factory.mktemp("run")
    stages.pretrain(o.Pretrain(out=folder / "teacher", data="ring", n_steps=4, batch=8))
    stages.degrade(o.Degrade(out=folder / "path", teacher=folder / "teacher", n_steps=4, batch=8))
    stages.backtrack(o.Backtrack(out=folder / "student", path=folder / "path", n_steps=6, batch=8, eval_n=8))
    return folder


@pytest.fixture
def altered(run, tmp_path):
    """A copy of these runs."""
    import shutil

    shutil.copytree(run, tmp_path / "r")
    return tmp_path / "r"


def command(*words):
    """What runs a command line in this process."""
    from disback.cli import main

    return lambda: main([*map(str, words)])


def changed(file, **changes):
    write(file, json.dumps(json.loads(file.read_text()) | changes))


OURS = {f"json_{k}": v for k, v in JSONS.items()} | dict(
    stage=dict(stage=["backtrack"]),
    controls=dict(stage=BAD_TEXT),
    source=dict(source=[1]),
    source_name=dict(source=dict(name=5)),
    source_text=dict(source="ring"),
    source_controls=dict(source=dict(name=BAD_TEXT)),
    source_more=dict(source=dict(name="ring", x=1)),
    source_size=dict(source=dict(name="digits", size=10**9)),
    source_device=dict(source=dict(name="/dev/zero")),
    source_fetch=dict(source=dict(name="mnist:chosen-by-a-stranger")),
)


@pytest.mark.parametrize("name", OURS)
def test_configuration_of_a_run(name, altered):
    file, bad = altered / "student" / "config.json", OURS[name]
    changed(file, **bad) if isinstance(bad, dict) else write(file, bad)
    refused(command("evaluate", "--run", altered / "student", "--n", 8))
    assert not Path("chosen-by-a-stranger").exists()


RESULTS = {f"json_{k}": v for k, v in JSONS.items()} | dict(
    passes=dict(passes="x"),
    none=dict(passes=None),
    nodes=dict(nodes=[1]),
    controls=dict(passes=BAD_TEXT),
    seconds=dict(seconds=[1]),
)


@pytest.mark.parametrize("name", RESULTS)
def test_result_of_a_run(name, altered):
    from disback.cli import equal_compute
    from disback.folders import RunFolder

    file, bad = altered / "student" / "result.json", RESULTS[name]
    changed(file, **bad) if isinstance(bad, dict) else write(file, bad)
    # what this stage does not write there may be taken for nothing
    refused(lambda: equal_compute(RunFolder(altered)), accepted=name in ("nodes", "seconds"))


METRICS = {f"json_{k}": v for k, v in JSONS.items()} | dict(
    step='{"step": "1", "frechet": 1}',
    true='{"step": true}',
    negative='{"step": -5, "frechet": 1}',
    nan='{"step": 1, "frechet": NaN}',
    text='{"step": 1, "frechet": "x"}',
    digits='{"step": ' + "9" * MB + "}",
    lists='{"step": 1, "frechet": [1]}',
    rows='{"step": 1}\n' * (MB // 12),
    controls=json.dumps({"step": 1, BAD_TEXT: 1}),
    deep='{"step": 1, "frechet": ' + nested(MB // 3) + "}",
)


@pytest.mark.parametrize("name", but_slow(METRICS, "rows"))
def test_metrics_of_a_run(name, altered):
    from disback.widgets import book_of

    write(altered / "student" / "metrics.jsonl", METRICS[name])

    def look():
        for _, frames in book_of(altered / "student")[0].values():
            next(iter(frames.values()))()

    refused(look, accepted=True)  # what cannot be read may be left out


# Safetensors


def safetensors(header, data=b""):
    """A file with this header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def tensor(shape=(1,), offsets=(0, 4), dtype="F32"):
    return dict(dtype=dtype, shape=shape, data_offsets=offsets)


def sealed(skeleton):
    """A state with a right fingerprint."""
    from disback.files import fingerprint

    header = json.dumps(dict(skeleton=skeleton, sha256=fingerprint(skeleton, {"a": torch.zeros(1)})))
    return safetensors(dict(__metadata__=dict(state=header), a=tensor()), bytes(4))


def deep_skeleton(n):
    """A list in a list, as states are written."""
    node = dict(value=1)
    for _ in range(n):
        node = dict(list=[node])
    return node


HEADERS = {
    f"json_{k}": (lambda v: lambda: safetensors(v if isinstance(v, bytes) else v.encode()))(v)
    for k, v in JSONS.items()
} | dict(
    promised=lambda: struct.pack("<Q", 2**62) + b"{}",
    hundred=lambda: struct.pack("<Q", 10**8) + b"{" * MB,
    shape=lambda: safetensors(dict(a=tensor([2**40, 2**40])), bytes(4)),
    negative=lambda: safetensors(dict(a=tensor([-1])), bytes(4)),
    overlap=lambda: safetensors({str(i): tensor() for i in range(MB // 70)}, bytes(4)),
    empty_ones=lambda: safetensors({str(i): tensor([0], [0, 0]) for i in range(MB // 70)}),
    beyond=lambda: safetensors(dict(a=tensor(offsets=[0, 2**40]))),
    skeleton_deep=lambda: sealed(deep_skeleton(150)),
    skeleton_text=lambda: sealed("text"),
    skeleton_kind=lambda: sealed({BAD_TEXT: 1}),
    skeleton_two=lambda: sealed(dict(list=[], dict=[])),
    skeleton_missing=lambda: sealed(dict(tensor="b")),
    skeleton_pairs=lambda: sealed(dict(dict=[[1, 2, 3]])),
    skeleton_keys=lambda: sealed(dict(dict=[[[1], dict(value=1)]])),
    skeleton_wide=lambda: sealed(dict(list=[dict(tensor="a")] * (MB // 20))),
    skeleton_controls=lambda: sealed(dict(dict=[[BAD_TEXT, dict(value=1)]])),
    noise=lambda: os.urandom(MB),
)
HARMLESS = "skeleton_wide", "skeleton_controls", "skeleton_deep"  # plain data, as large as the file


@pytest.mark.parametrize("name", HEADERS)
def test_state(name, tmp_path):
    from disback.files import load_state

    (tmp_path / "x.safetensors").write_bytes(HEADERS[name]())
    refused(lambda: load_state(tmp_path / "x.safetensors"), accepted=name in HARMLESS)


@pytest.mark.parametrize("name", [name for name in HEADERS if "skeleton" not in name])
def test_weights(name, tmp_path):
    from disback.edm import load_edm

    (tmp_path / "x.safetensors").write_bytes(HEADERS[name]())
    config = dict(
        img_resolution=8,
        img_channels=1,
        model_type="SongUNet",
        model_channels=8,
        channel_mult=[1],
        num_blocks=1,
        attn_resolutions=[],
    )
    refused(lambda: load_edm(tmp_path / "x.safetensors", config=config))


STATES = dict(
    claimed=dict(network=network("OneStep", denoiser=network(dim=2, width=60000), sigma_init=1.0)),
    stacked=dict(network=stacked(60)),
    text=dict(network="x"),
    weights=dict(weights=[1]),
    numbers=dict(weights={"a": 1}),
    none=dict(weights=None),
    controls=dict(network=network(BAD_TEXT)),
    format=dict(format=BAD_TEXT),
    keys=dict(weights={BAD_TEXT: torch.ones(1)}),
)


@pytest.mark.parametrize("name", STATES)
def test_network_of_a_run(name, altered):
    from disback.files import load_state, save_state

    file = altered / "student" / "student.safetensors"
    save_state(file, load_state(file) | STATES[name])
    refused(command("sample", "--run", altered / "student", "--n", 4))


# What is no file

READERS = dict(
    pickle=("x.pkl", lambda f: __import__("disback.edm", fromlist="x").load_edm(f / "x.pkl")),
    statistics=(
        "x.npz",
        lambda f: __import__("disback.evaluation", fromlist="x").load_statistics(f / "x.npz"),
    ),
    state=(
        "x.safetensors",
        lambda f: __import__("disback.files", fromlist="x").load_state(f / "x.safetensors"),
    ),
    weights=(
        "x.safetensors",
        lambda f: __import__("disback.files", fromlist="x").read_weights(f / "x.safetensors"),
    ),
    old_weights=("x.pt", lambda f: __import__("disback.files", fromlist="x").read_weights(f / "x.pt")),
    json=("x.json", lambda f: __import__("disback.files", fromlist="x").read_json(f / "x.json")),
    manifest=("path.json", lambda f: __import__("disback.paths", fromlist="x").open_path(f)),
    table=("dataset.json", lambda f: __import__("disback.data", fromlist="x").load_data(f, labels=True)),
    image=("99.png", lambda f: __import__("disback.data", fromlist="x").load_data(f)),
    archive=("x.zip", lambda f: __import__("disback.data", fromlist="x").load_data(f / "x.zip")),
    recipe=("x.toml", lambda f: __import__("disback.recipes", fromlist="x").load_recipe(f / "x.toml")),
    pipeline=("config.json", lambda f: __import__("disback.pipelines", fromlist="x").load_pipeline(f)),
    run=("config.json", lambda f: __import__("disback.folders", fromlist="x").load_teacher(f)),
    metrics=("metrics.jsonl", lambda f: __import__("disback.folders", fromlist="x").RunFolder(f).metrics),
)


@pytest.mark.parametrize("what", ("pipe", "zero", "loop", "folder"))
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(name, what, tmp_path):
    file, read = READERS[name]
    tmp_path = tmp_path / "f"
    tmp_path.mkdir()
    if name in ("table", "image"):
        images(tmp_path)
    make = dict(
        pipe=os.mkfifo,
        zero=lambda p: p.symlink_to("/dev/zero"),
        loop=lambda p: p.symlink_to(p),
        folder=Path.mkdir,
    )
    make[what](tmp_path / file)
    # what is no file may be left out, where files are looked for
    refused(
        lambda: read(tmp_path),
        accepted=name in ("table", "image", "metrics") or (name, what) == ("archive", "folder"),
    )


@pytest.mark.parametrize("name", ("figures", "samples", "student.safetensors", "result.json", "config.json"))
def test_links_in_a_run_folder_are_not_followed_on_write(name, tmp_path):
    """What lies behind a link stays as it is."""
    from disback import options as o
    from disback import stages

    victim, out = tmp_path / "victim", tmp_path / "out"
    out.mkdir()
    victim.mkdir() if "." not in name else victim.write_text("mine")
    (out / name).symlink_to(victim)
    try:
        stages.pretrain(o.Pretrain(out=out, data="ring", n_steps=2, batch=8))
    except ValueError as e:
        assert str(e).isprintable()
    assert not [*victim.iterdir()] if victim.is_dir() else victim.read_text() == "mine"


@pytest.mark.parametrize("name", ("samples-0", "evaluation.json", "samples-0/figures"))
def test_links_in_a_strangers_run_are_not_followed_on_write(name, altered, tmp_path):
    """A run folder that came from elsewhere does not choose where samples and measures are written."""
    victim, link = tmp_path / "victim", altered / "student" / name
    victim.mkdir() if "." not in name else victim.write_text("mine")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    what = "evaluate" if "." in name else "sample"
    reading(command(what, "--run", altered / "student", "--n", 8))
    assert not [*victim.iterdir()] if victim.is_dir() else victim.read_text() == "mine"
