"""What a step of the library costs: network passes, wall time, memory, processes.

    python benchmarks/speed.py [--quick] [--json] [--device cpu|cuda] [--threads N] [--only passes,step,...]

passes     flops of a step in units of F, a forward pass of the batch without gradient; calls of each network
step       the library's step against the same step in a bare loop: no checks, no records, no state to save
peers      the schedules of Diff-Instruct, SiD and DMD2 against the library's, all else equal
memory     bytes a parameter, the peak along a path of 4 and of 32 nodes, growth over a long run
processes  a step in one process and in two, for the same batch

Times are medians over pairs of steps taken in turn in one process, ratios are medians of the paired ratios
with their quartiles; on CUDA every timed step is synchronised. The networks have random weights: nothing
depends on what a network has learnt, and nothing says how good its samples are."""
import argparse, datetime, gc, json, os, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median, quantiles

try:
    import torch
    from torch.nn.functional import mse_loss
    from disback.backtracking import Backtracking, Fixed
    from disback.degradation import Degradation, Every
    from disback.diffusion import edm_noise
    from disback.networks import OneStep, ResMLP, UNet, clone
    from disback.paths import DegradationPath, Node
except ImportError as e:
    sys.exit(f"speed.py: {e}: install the library first, with `pip install -e .` in the project's folder")

SIGMA_DATA = 0.5
LR, FAKE_LR, DEGRADATION_LR = 1e-3, 4e-3, 1e-3    # the library's defaults, for every loop
MIB = 2**20

# ---- networks and loops

def network(kind, device, **args):
    "A denoiser with random weights everywhere: those that start at zero would leave gradients zero."
    torch.manual_seed(0)
    net = dict(mlp=ResMLP, unet=UNet)[kind](sigma_data=SIGMA_DATA, **args)
    with torch.no_grad():
        for p in net.parameters(): p.add_(0.02 * torch.randn_like(p))
    return net.to(device)

def adam(parameters, lr, betas=(0., 0.99)):
    return torch.optim.Adam([*parameters], lr=lr, betas=betas, fused=True)

def per_sample(v, x): return v.view(-1, *[1] * (x.ndim - 1))    # `(B,)` -> `(B, 1, ...)`

class Loop:
    "A training loop in torch alone: networks, optimisers, noise, average. A subclass adds `step`."
    def __init__(self, teacher, batch):
        self.student, self.fake = OneStep(teacher), clone(teacher)
        self.target = clone(teacher, trainable=False)
        self.average = clone(self.student, trainable=False)
        self.weights = {m: [*m.parameters()] for m in (self.student, self.fake, self.average)}
        self.optimizer = adam(self.student.parameters(), LR)
        self.fake_optimizer = adam(self.fake.parameters(), FAKE_LR)
        self.device = next(teacher.parameters()).device
        self.batch, self.steps, self.generator = batch, 0, torch.Generator(self.device).manual_seed(0)

    def randn(self, *shape): return torch.randn(shape, generator=self.generator, device=self.device)
    def sample(self, n=None): return self.student(self.randn(n or self.batch, *self.student.shape))

    def noised(self, x0): # -> `x, sigma`, with EDM's log-normal noise levels
        sigma = (-1.2 + 1.2 * self.randn(len(x0))).exp()
        return x0 + per_sample(sigma, x0) * self.randn(*x0.shape), sigma

    def update_fake(self, denoised, x0, sigma): # 2F
        s = per_sample(sigma, x0)
        loss = ((s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA)**2 * (denoised - x0)**2).mean()
        self.fake_optimizer.zero_grad()
        loss.backward(inputs=self.weights[self.fake])
        self.fake_optimizer.step()

    def train_fake(self, x0): # 3F
        x, sigma = self.noised(x0)
        self.update_fake(self.fake(x, sigma), x0, sigma)

    def sample_and_train_fake(self): # 4F
        with torch.no_grad(): x0 = self.sample()
        self.train_fake(x0)

    def differentiate(self, loss): # 2F, and whatever lies between the loss and the samples
        self.optimizer.zero_grad()
        loss.backward(inputs=self.weights[self.student])

    def update_student(self):
        self.optimizer.step()
        self.steps += 1
        weight = 1 - (1 - 1 / self.steps)**7.94    # an average of relative width 0.1
        torch._foreach_lerp_(self.weights[self.average], self.weights[self.student], weight)

    @torch.no_grad()
    def ask(self, x0): # 2F -> answers of fake and target
        x, sigma = self.noised(x0)
        return self.fake(x, sigma), self.target(x, sigma)

class Bare(Loop):
    "The library's step: one fake forward serves both updates. Student 1 + 2, target 1, fake 1 + 2: 7F."
    def step(self):
        x0 = self.sample()
        clean = x0.detach()
        x, sigma = self.noised(clean)
        d_fake = self.fake(x, sigma)
        with torch.no_grad(): goal = clean - (d_fake - self.target(x, sigma))
        self.differentiate(0.5 * mse_loss(x0, goal))
        self.update_fake(d_fake, clean, sigma)
        self.update_student()

class BareDegradation(Loop):
    "The library's stage 1: the fake is trained on samples drawn once. 3F."
    def __init__(self, teacher, batch, pool):
        super().__init__(teacher, batch)
        with torch.no_grad(): self.pool = self.sample(pool)
        self.fake_optimizer = adam(self.fake.parameters(), DEGRADATION_LR, betas=(0.9, 0.999))

    def step(self):
        n, place = len(self.pool), dict(generator=self.generator, device=self.device)
        self.train_fake(self.pool[torch.randint(n, (self.batch,), **place)])

class DiffInstruct(Loop):
    "Fake: fresh samples 1, training 3. Student: fresh samples 1, fake 1, target 1, backward 2. In all 9F."
    def step(self):
        self.sample_and_train_fake()
        x0 = self.sample()
        d_fake, d_target = self.ask(x0.detach())
        self.differentiate(0.5 * mse_loss(x0, x0.detach() - (d_fake - d_target)))
        self.update_student()

class SiD(Loop):
    "Fake: fresh samples 1, training 3. Student: 1 + 2, through fake and target 2 each. In all 11F."
    def step(self):
        self.sample_and_train_fake()
        x0 = self.sample()
        x, sigma = self.noised(x0)
        d_fake, d_target = self.fake(x, sigma), self.target(x, sigma)
        scale = (x0 - d_target).detach().abs().flatten(1).mean(1).clamp_min(1e-6)
        apart = d_target - d_fake
        self.differentiate((apart * ((d_target - x0) - 1.2 * apart) / per_sample(scale, x0)).mean())
        self.update_student()

class DMD2(Loop):
    """Five fake steps to one of the student. Student: samples 1, fake 1, target 1, backward 2; then the fake
    is trained on the same samples with noise of its own, 3: 8F. Four more fake steps on fresh samples, 1 + 3
    each: 16F. In all 24F."""
    def step(self):
        x0 = self.sample()
        clean = x0.detach()
        d_fake, d_target = self.ask(clean)
        scale = (clean - d_target).abs().flatten(1).mean(1).clamp_min(1e-6)
        self.differentiate(0.5 * mse_loss(x0, clean - (d_fake - d_target) / per_sample(scale, x0)))
        self.update_student()
        self.train_fake(clean)
        for _ in range(4): self.sample_and_train_fake()

def backtracking(teacher, batch, **args):
    "The library's stage 2 on a path that holds the teacher alone, with constant learning rates."
    path = DegradationPath.of(teacher)
    return Backtracking(OneStep(teacher), path, n_steps=10**6, batch=batch, decay=0, **args)

def degradation(teacher, batch, **args):
    "The library's stage 1 between two nodes."
    return Degradation(teacher, OneStep(teacher), keep=Every(10**6), n_steps=10**6, batch=batch, **args)

def advance(run, n):
    for _ in range(n): next(run)

# ---- passes

def count_flops(function): # -> flops of matrix products and convolutions
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter: function()
    return counter.get_total_flops()

def count_calls(networks, function): # `{name: module}` -> `{name: calls}`
    calls = dict.fromkeys(networks, 0)
    def note(name): calls[name] += 1
    hooks = [m.register_forward_pre_hook(lambda *_, name=name: note(name)) for name, m in networks.items()]
    function()
    for hook in hooks: hook.remove()
    return calls

def measure_passes(device, quick, threads):
    "Counted falls a little short of expected: a network's first layer needs no gradient for its input."
    teacher, batch = network('unet', device), 8 if quick else 128
    x, sigma = torch.randn(batch, *teacher.shape, device=device), torch.ones(batch, device=device)
    with torch.no_grad(): forward = count_flops(lambda: teacher(x, sigma))
    loops = {
        'Backtracking':                 (7,  backtracking(teacher, batch)),
        'Backtracking, own fake noise': (8,  backtracking(teacher, batch, fake_noise=edm_noise(SIGMA_DATA))),
        'Backtracking, SiD loss':       (9,  backtracking(teacher, batch, loss='sid')),
        'Backtracking, ratio 3':        (15, backtracking(teacher, batch, ratio=3)),
        'Backtracking, ratio 5':        (23, backtracking(teacher, batch, ratio=5)),
        'Degradation, pool':            (3,  degradation(teacher, batch, pool=2 * batch, n_probe=8)),
        'Degradation, live samples':    (4,  degradation(teacher, batch, pool=None, n_probe=8)),
        'Diff-Instruct loop':           (9,  DiffInstruct(teacher, batch)),
        'SiD loop':                     (11, SiD(teacher, batch)),
        'DMD2 5:1 loop':                (24, DMD2(teacher, batch))}
    rows = {}
    for name, (expected, loop) in loops.items():
        step = loop.step if isinstance(loop, Loop) else loop.__next__
        names = 'student', 'fake', 'target', 'degraded'
        networks = {k: getattr(loop, k) for k in names if getattr(loop, k, None) is not None}
        step()    # what is made at the first step is not counted
        counted = round(count_flops(step) / forward, 2)
        rows[name] = dict(expected=expected, counted=counted) | count_calls(networks, step)
    return rows

# ---- time

def timed(step, device): # -> milliseconds
    def wait():
        if device == 'cuda': torch.cuda.synchronize()
    wait()
    start = time.perf_counter()
    step()
    wait()
    return 1e3 * (time.perf_counter() - start)

def in_turn(ours, theirs, pairs, device, warm_up): # two steps -> the milliseconds of each, `pairs` of both
    "Time two steps alternately, each first in every other pair: whatever slows the machine slows both."
    times = [], []
    for i in range(-warm_up, pairs):
        for k in (0, 1) if i % 2 else (1, 0):
            ms = timed((ours, theirs)[k], device)
            if i >= 0: times[k].append(ms)
    return times

def ratio(numerators, denominators): # paired times -> median of the ratios, and quartiles
    low, middle, high = quantiles([a / b for a, b in zip(numerators, denominators)], n=4)
    return dict(ratio=round(middle, 3), quartiles=[round(low, 3), round(high, 3)])

def settings(quick): # -> name, kind of network, batch, pairs
    if quick: return [('MLP', 'mlp', 64, 10), ('U-Net', 'unet', 8, 6)]
    return [('MLP', 'mlp', 256, 120), ('U-Net', 'unet', 128, 30)]

def measure_step(device, quick, threads):
    "`ratio`: library over bare. `apart`: largest difference of the two students' weights."
    rows, warm_up, pool = {}, 3 if quick else 10, 256 if quick else 4096
    for name, kind, batch, pairs in settings(quick):
        teacher = network(kind, device)
        pairs_of_loops = [
            ('backtracking', backtracking(teacher, batch), Bare(teacher, batch)),
            ('degradation', degradation(teacher, batch, pool=pool), BareDegradation(teacher, batch, pool))]
        for stage, run, bare in pairs_of_loops:
            bare.generator.set_state(run.generator.get_state())    # the same random numbers
            ours, theirs = in_turn(run.__next__, bare.step, pairs, device, warm_up)
            row = dict(library_ms=round(median(ours), 2), bare_ms=round(median(theirs), 2),
                       **ratio(ours, theirs), steps_per_second=round(1e3 / median(ours), 1))
            if stage == 'backtracking':
                both = zip(run.student.parameters(), bare.student.parameters())
                row['apart'] = max((p - q).abs().max().item() for p, q in both)
            rows[f'{name}, {stage}'] = row
    return rows

def measure_peers(device, quick, threads):
    "`ratio`: time of a student update in the peer's schedule over the library's."
    # SiD's own loss needs 9F; fewer fake steps are another training, not a saving alone
    peers = {'Diff-Instruct 9F : 7F':      (DiffInstruct, dict()),
             'SiD 11F : 7F default loss':  (SiD,          dict()),
             'SiD 11F : 9F':               (SiD,          dict(loss='sid')),
             'DMD2 5:1 24F : 23F ratio 5': (DMD2,         dict(loss='dmd', ratio=5)),
             'DMD2 5:1 24F : 7F ratio 1':  (DMD2,         dict(loss='dmd'))}
    rows = {}
    for name, kind, batch, pairs in settings(quick)[:1 if quick else None]:    # quick: the MLP alone
        teacher = network(kind, device)
        for peer, (loop, args) in peers.items():
            run = backtracking(teacher, batch, **args)
            bare, warm_up = loop(teacher, batch), 1 if quick else 2
            ours, theirs = in_turn(run.__next__, bare.step, max(3, pairs // 3), device, warm_up)
            rows[f'{name}, {peer}'] = dict(peer_ms=round(median(theirs), 2),
                                           library_ms=round(median(ours), 2), **ratio(theirs, ours))
    return rows

# ---- memory, in fresh processes

# glibc then gives freed tensors back at once: what is resident is in use
LARGE_BLOCKS = dict(MALLOC_MMAP_THRESHOLD_='1000000')

def memory(device, peak=False): # -> bytes: resident memory of this process, or what PyTorch holds on the GPU
    gc.collect()
    if device == 'cuda':
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    lines = Path('/proc/self/status').read_text().splitlines()
    key = 'VmHWM:' if peak else 'VmRSS:'
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

def bytes_of(module): # -> bytes of its parameters, buffers and gradients, and of its optimiser's state
    parameters = [*module.parameters()]
    optimizers = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)
                  and o.param_groups[0]['params'][0] is parameters[0]]
    tensors = [*parameters, *module.buffers(), *(p.grad for p in parameters if p.grad is not None)]
    states = [state for o in optimizers for state in o.state.values()]
    tensors += [t for state in states for t in state.values() if torch.is_tensor(t)]
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())

def stage_memory(device, stage, width, depth):
    """Bytes a parameter after three steps, where gradients are gone, and at the peak, with one gradient.
    `rest`: what the process holds beyond the networks named; nodes lie in its memory, not the GPU's."""
    before = memory(device)
    teacher = network('mlp', device, width=width, depth=depth)
    run = backtracking(teacher, 8) if stage == 'backtracking' else degradation(teacher, 8, pool=64, n_probe=8)
    advance(run, 3)
    total, peak, node = memory(device) - before, memory(device, peak=True) - before, 4 * (device == 'cpu')
    if stage == 'backtracking':
        networks = {"caller's teacher": (4, teacher), 'target': (4, run.target),
                    'fake, Adam': (12, run.fake), 'student, Adam': (12, run.student), 'average': (4, run.ema)}
        rest, expected = "rest: path's network and node", 4 + node
    else:
        networks = {"caller's teacher": (4, teacher), 'degraded, Adam': (12, run.degraded)}
        rest, expected = 'rest: node', node
    rows = {name: (e, bytes_of(m)) for name, (e, m) in networks.items()}
    rows[rest] = expected, total - sum(b for _, b in rows.values())
    rows['all'] = sum(e for e, _ in rows.values()), total
    rows['peak'] = rows['all'][0] + 4, peak
    n = sum(p.numel() for p in teacher.parameters())
    rows = {k: dict(expected=e, bytes_per_parameter=round(b / n, 2)) for k, (e, b) in rows.items()}
    return {f'{stage}, {n / 1e6:.1f} million parameters': rows}

def growth(device, early, late):
    "Memory at an early and at a late step of one run."
    run = backtracking(network('mlp', device, width=32, depth=1), 16)
    advance(run, early)
    first = memory(device) / MIB
    advance(run, late - early)
    last = memory(device) / MIB
    mib = {f'step {early}': first, f'step {late}': last, 'growth': last - first}
    return {k: dict(mib=round(v, 2)) for k, v in mib.items()}

def run_memory(device, early, late, **size): # -> tables
    "The smaller first, so that each peak is its own; the small runs also load the code."
    tables = {'long run': growth(device, early, late)}
    advance(degradation(network('mlp', device), 8, pool=64, n_probe=8), 2)
    return stage_memory(device, 'degradation', **size) | stage_memory(device, 'backtracking', **size) | tables

def save_long_path(folder, n_nodes, width):
    "Write a path whose nodes are one network, scaled a little each time."
    teacher = network('mlp', 'cpu', width=width)
    def weights(i): return {k: v * (1 - 1e-3 * i) if v.ndim else v for k, v in teacher.state_dict().items()}
    nodes = [Node(i, step=i, drift=0.1 * i, gap=0.1 * (i > 0), weights=lambda i=i: weights(i))
             for i in range(n_nodes)]
    DegradationPath(teacher, nodes).save(folder)

def walk_memory(device, folders, n_steps): # shortest first: a peak stays, so a longer path shows only more
    "Walk each path from its folder. `above`: the peak beyond what the process held before."
    advance(backtracking(network('mlp', device), 8), 2)
    before, rows = memory(device), {}
    for folder in folders:
        path = DegradationPath.open(folder)
        walk = Fixed((1,) * (len(path) - 2))
        run = Backtracking(OneStep(path.denoiser(0)).to(device), path, itinerary=walk, n_steps=n_steps,
                           batch=8)
        targets, peak = {record.node for record in run}, memory(device, peak=True)
        disk = sum(f.stat().st_size for f in Path(folder).iterdir())
        rows[f'{len(path)} nodes'] = dict(targets=len(targets), peak_mib=round(peak / MIB, 1),
                                          above_mib=round((peak - before) / MIB, 1),
                                          on_disk_mib=round(disk / MIB, 1))
        del run, path
        gc.collect()
    return rows

def measure_memory(device, quick, threads):
    if device == 'cpu' and not Path('/proc/self/status').is_file():
        return dict(skipped='resident memory is read from /proc, which this system lacks')
    def work(name, **args): return in_process(name, device, threads, env=LARGE_BLOCKS, **args)
    sizes = dict(early=2000, late=20_000, width=2048, depth=4)
    if quick: sizes = dict(early=100, late=400, width=1024, depth=2)
    tables = work('run_memory', **sizes)
    with tempfile.TemporaryDirectory() as place:
        folders = {n: f'{place}/{n}' for n in (4, 32)}
        for n, folder in folders.items(): save_long_path(folder, n, width=256 if quick else 512)
        walks = work('walk_memory', folders=[*folders.values()], n_steps=33 if quick else 60)
    short, long = walks.values()
    ratios = {k: round(long[k] / short[k], 3) for k in short if k.endswith('mib')}
    return tables | {'path in a folder': walks | {'long : short': ratios}}

# ---- processes

def step_time(device, batch, warm_up, n_steps):
    "Milliseconds of a step; under a launcher the library shares the batch out by itself."
    if device == 'cuda': torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    run, sizes = backtracking(network('unet', device), batch), []
    hook = run.student.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    advance(run, 1)
    hook.remove()
    advance(run, warm_up - 1)
    ms = median(timed(run.__next__, device) for _ in range(n_steps))
    del run    # before the process group they belong to: the exit sometimes crashed otherwise
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return dict(step_ms=round(ms, 2), samples_a_process=sizes[0])

def measure_processes(device, quick, threads):
    "Each process has its own `threads` threads, or its own GPU."
    if device == 'cuda' and torch.cuda.device_count() < 2: return dict(skipped='two processes need two GPUs')
    args = dict(batch=16 if quick else 128, warm_up=3, n_steps=6 if quick else 40)
    rows = {name: in_process('step_time', device, threads, processes=n, **args)
            for n, name in [(1, 'one process'), (2, 'two processes')]}
    one, two = [row['step_ms'] for row in rows.values()]
    return rows | {'times faster': dict(step_ms=round(one / two, 2))}

WORK = dict(run_memory=run_memory, walk_memory=walk_memory, step_time=step_time)

def in_process(name, device, threads, processes=1, env=None, **args): # -> what the function returned
    "Call a function of `WORK` in a fresh process, or in several, of which the first answers."
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, '--device', device,
               '--threads', str(threads), '--work', json.dumps([name, args])]
    child = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env=os.environ | dict(OMP_NUM_THREADS=str(threads)) | (env or {}))
    try: out, err = child.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the measurement {name} did not end within 15 minutes") from None
    finally:
        if child.poll() is None:    # a launcher ends its processes first
            child.terminate()
            child.wait()
    answers = [line for line in out.splitlines() if line.startswith('{')]
    if answers: return json.loads(answers[0])
    reasons = [line for line in err.splitlines() if 'speed.py: ' in line or 'Error: ' in line]
    reason = [*reasons, 'it gave no answer'][0].split('speed.py: ')[-1].strip()
    raise RuntimeError(f"the measurement {name} failed in a process of its own: {reason}")

# ---- tables and the command line

PARTS = dict(passes=measure_passes, step=measure_step, peers=measure_peers, memory=measure_memory,
             processes=measure_processes)

def cell(v):
    if isinstance(v, list): return ' to '.join(map(str, v))
    return '-' if v is None else f'{v:.1e}' if isinstance(v, float) and 0 < abs(v) < 1e-3 else str(v)

def show(title, rows):
    "Print rows `{name: {column: value}}` as a table, or each of several tables `{name: rows}`."
    if 'skipped' in rows: return print(f"{title}: skipped, {rows['skipped']}\n", flush=True)
    inner = next(iter(rows.values()))
    if isinstance(next(iter(inner.values())), dict):
        for name, table in rows.items(): show(f'{title}: {name}', table)
        return
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = [[title, *(c.replace('_', ' ') for c in columns)]]
    lines += [[name, *(cell(row.get(c)) for c in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ['-' * w for w in widths])
    for first, *others in lines:
        padded = [v.rjust(w) for v, w in zip(others, widths[1:])]
        print('  '.join([first.ljust(widths[0]), *padded]))
    print(flush=True)

class Parser(argparse.ArgumentParser):
    def error(self, message): self.exit(2, f'speed.py: {message}\n')

def parts(text):
    names = text.split(',')
    unknown = [n for n in names if n not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}, "
                                         "separated by commas")
    return names

def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)

def parse(argv):
    parser = Parser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true',
                        help="under a minute instead of some: small batches, few steps, rough numbers")
    parser.add_argument('--json', action='store_true', help="print one JSON object and nothing else")
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu',
                        help="where to measure (default: cpu)")
    parser.add_argument('--threads', type=positive, default=1, metavar='N',
                        help="CPU threads of a process (default: 1)")
    parser.add_argument('--only', type=parts, default=[*PARTS], metavar='PART,...',
                        help=f"some of {', '.join(PARTS)} (default: all)")
    # a measurement in a process of its own
    parser.add_argument('--work', type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)

def main(argv=None):
    args = parse(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no CUDA device here: use --device cpu")
    torch.set_num_threads(args.threads)
    if args.work:
        name, work_args = args.work
        answer = json.dumps(WORK[name](args.device, **work_args))
        return print(answer) if os.environ.get('RANK', '0') == '0' else None
    date = datetime.date.today().isoformat()
    results = dict(device=args.device, torch=torch.__version__, threads=args.threads, date=date,
                   quick=args.quick)
    if not args.json: print(', '.join(f'{k} {v}' for k, v in results.items()) + '\n', flush=True)
    for part in [p for p in PARTS if p in args.only]:
        results[part] = PARTS[part](args.device, args.quick, args.threads)
        if not args.json: show(part, results[part])
    if args.json: print(json.dumps(results))

if __name__ == '__main__':
    try: main()
    except (RuntimeError, ValueError, OSError) as e: sys.exit(f'speed.py: {str(e).splitlines()[0]}')
    except KeyboardInterrupt: sys.exit(130)
