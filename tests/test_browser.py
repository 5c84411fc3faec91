"""The widgets in a real browser: JupyterLab in headless Chromium, driven by mouse and keyboard.

Without Chromium the tests are skipped; DISBACK_BROWSER=required makes that a failure. Screenshots go to DISBACK_SCREENSHOTS, if it is set."""
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM and os.environ.get("DISBACK_BROWSER") == "required": raise RuntimeError("Chromium is required here and not installed.")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")

FLAGS = ("--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-default-apps --disable-extensions").split()
WAIT = 60_000  # ms, for anything; nothing here is timed
PANEL = "Array.from(window.jupyterapp?.shell.widgets('main') ?? []).find(w => w.sessionContext && w.content)"    # the open notebook

SETUP = """\
import pathlib, threading, time, torch
from disback.backtracking import Backtracking, Fixed
from disback.cli import demo
from disback.degradation import Degradation, EqualDrift
from disback.mismatch import MismatchRecorder
from disback.mixtures import ring_mixture
from disback.networks import OneStep, ResMLP, clone
from disback.pretraining import Pretraining
from disback.widgets import DistillationLab, Gallery, MismatchExplorer, PathStepper
torch.manual_seed(0)
ring, net = ring_mixture(), ResMLP(width=32, depth=1)
pretraining = Pretraining(net, ring.sample, n_steps=300); [*pretraining]
student = OneStep(pretraining.ema)
deg = Degradation(pretraining.ema, student, keep=EqualDrift(4), n_steps=30); [*deg]
recorder = MismatchRecorder(pretraining.ema, every=10, n=128, keep_samples=True)
for _ in recorder.follow(Backtracking(clone(student), deg.path, itinerary=Fixed((10, 10)), n_steps=40, batch=64)): pass"""
NOTEBOOKS = {
    "stepper": [SETUP, "PathStepper(deg.path, student, ring.sample(300))"],
    "explorer": [SETUP, "MismatchExplorer(recorder, deg.path)"],
    "gallery": [SETUP, "demo(pathlib.Path('demo'), data='ring', pretrain_steps=100, degrade_steps=10, steps=40);", "Gallery('demo')"],
    "lab": [SETUP, "lab = DistillationLab(budget=20000, teacher_steps=50, record=6, lr=1e-4); lab.lease = 4.; lab",
            "other = DistillationLab(budget=20000, teacher_steps=50); other",
            "def watch():\n    while True: pathlib.Path('thread').write_text('rests' if lab.thread is None else 'works'); time.sleep(.1)\n"
            "threading.Thread(target=watch, daemon=True).start()",
            "print('the kernel answers:', 6 * 7)"]}


def until(page, script, arg=None):
    """Wait until a script, which may be asynchronous, returns true on the page."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(script, arg):
        assert time.monotonic() < end, f"waited in vain for {script}"
        page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on loopback with folders of its own; yields its address with the token, and the folder of the notebooks."""
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    for name, cells in NOTEBOOKS.items():
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        nb.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
        nbformat.write(nb, folder / f"{name}.ipynb")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    quiet = home / "CONFIG" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True); quiet.write_text('{"fetchNews": "false"}')    # no pop-up before the widgets
    env = os.environ | {f"JUPYTER_{k}_DIR": str(home / k) for k in ("CONFIG", "DATA", "RUNTIME")} | dict(
        JUPYTER_TOKEN=token, OMP_NUM_THREADS="1", DISBACK_PROGRESS="0", PYTHONPATH=str(Path(__file__).parents[1]), HOME=str(home), PYTHON_KEYRING_BACKEND="")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--LabApp.extension_manager=readonly",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(home / "log", "w") as log: process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 90
        while True:
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).read(); break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (home / "log").read_text()[-3000:]
                time.sleep(.2)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}.ipynb?token={token}&reset", folder
    finally: process.terminate(); process.wait(20)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"])
        yield browser
        browser.close()


@pytest.fixture
def notebook(server, browser):
    """A function that opens a notebook and runs all its cells; afterwards nothing may have gone wrong on its page."""
    address, _ = server
    opened, wrong = [], []

    def open_and_run(name):
        page = browser.new_page(viewport=dict(width=1366, height=768))    # a laptop
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda e: wrong.append(f"page error: {e}"))
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" and not ignorable(m.text) else None)
        opened.append((name, page))
        page.goto(address.format(name))
        until(page, f"""async () => {{    // the panel that is there now has run all its cells
            const panel = {PANEL};
            if (!panel) return false;
            await window.jupyterapp.restored; await panel.context.ready; await panel.sessionContext.ready;
            const kernel = panel.sessionContext.session?.kernel;
            if (!kernel || panel.isDisposed) return false;
            await kernel.info;
            if (!panel.started) {{
                if (kernel.status !== 'idle') return false;
                panel.started = true; window.jupyterapp.shell.activateById(panel.id);
                window.jupyterapp.commands.execute('notebook:run-all-cells'); return false;
            }}
            return kernel.status === 'idle' && panel.content.widgets.every(c => c.model.type !== 'code' || c.model.executionCount);
        }}""")
        return page

    yield open_and_run
    for name, page in opened:
        if page.is_closed(): continue
        shoot(page, name)
        assert page.locator('[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
        page.close()
    assert not wrong, wrong


def shoot(page, name):
    """Keep a picture of the page, the widget alone beside it."""
    if not (where := os.environ.get("DISBACK_SCREENSHOTS")): return
    Path(where).mkdir(parents=True, exist_ok=True)
    if page.locator(".widget-image").count():
        page.locator(".widget-image").first.scroll_into_view_if_needed()
        page.locator(".jp-OutputArea-output", has=page.locator(".widget-image")).first.screenshot(path=Path(where) / f"{name}_widget.png")
    page.screenshot(path=Path(where) / f"{name}.png")


def ignorable(text): # what JupyterLab itself says of a server that has no user settings yet, and of closed connections
    return bool(re.search(r"Failed to load resource.*40[04]|favicon|net::ERR_NAME_NOT_RESOLVED", text))


def picture(page, i=0): return page.locator(".widget-image").nth(i).get_attribute("src")

def changed(page, before, i=0):
    """Wait until picture `i` is another one than `before`; return it."""
    until(page, "([i, before]) => { const p = document.querySelectorAll('.widget-image')[i]; return p && p.src !== before && p.complete; }", [i, before])
    return picture(page, i)

def slider(page, label): return page.locator(".widget-inline-hbox", has=page.locator(".widget-label", has_text=re.compile(f"^{label}"))).first

def says(page, label, text):
    """Wait until the read-out of a slider says `text`."""
    until(page, "([label, text]) => [...document.querySelectorAll('.widget-inline-hbox')].some(b => b.querySelector('.widget-label')?.textContent.startsWith(label) && b.querySelector('.widget-readout')?.textContent.trim() === text)", [label, text])


def test_path_stepper_follows_keys_mouse_and_play(notebook):
    page = notebook("stepper")
    at_teacher = picture(page)
    handle = slider(page, "node").locator(".noUi-handle")
    handle.focus(); page.keyboard.press("ArrowRight")
    says(page, "node", "1"); at_one = changed(page, at_teacher)
    page.keyboard.press("End"); says(page, "node", "3"); at_end = changed(page, at_one)
    page.keyboard.press("Home"); says(page, "node", "0"); changed(page, at_end)

    box, bar = handle.bounding_box(), slider(page, "node").locator(".noUi-target").bounding_box()    # drag to the right end
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2); page.mouse.down()
    page.mouse.move(bar["x"] + bar["width"], bar["y"] + bar["height"] / 2, steps=5); page.mouse.up()
    says(page, "node", "3")

    page.keyboard.press("Home"); says(page, "node", "0")
    before = picture(page)
    page.locator(".widget-play button").first.click()
    says(page, "node", "3"); before = changed(page, before)    # it walks to the end by itself
    slider(page, "σ").locator(".noUi-handle").focus(); page.keyboard.press("ArrowRight"); changed(page, before)


def test_mismatch_explorer_follows_its_controls(notebook):
    page = notebook("explorer")
    before = picture(page)
    slider(page, "step").locator(".noUi-handle").focus(); page.keyboard.press("ArrowRight")
    says(page, "step", "10"); before = changed(page, before)
    slider(page, "σ").locator(".noUi-handle").focus(); page.keyboard.press("ArrowLeft"); before = changed(page, before)
    slider(page, "target node").locator(".noUi-handle").focus(); page.keyboard.press("End"); before = changed(page, before)
    page.locator(".widget-dropdown select").select_option("target to teacher"); before = changed(page, before)
    page.locator(".widget-play button").first.click()
    says(page, "step", "40"); changed(page, before)


def test_gallery_turns_its_pages(notebook):
    page = notebook("gallery")
    before = picture(page)
    page.locator(".widget-dropdown select").select_option("student: samples over training"); before = changed(page, before)
    slider(page, "at").locator(".noUi-handle").focus(); page.keyboard.press("End"); says(page, "at", "40"); before = changed(page, before)
    page.locator(".widget-dropdown select").select_option("path: nodes"); before = changed(page, before)
    slider(page, "at").locator(".noUi-handle").focus(); page.keyboard.press("ArrowRight"); says(page, "at", "node 1"); changed(page, before)


def steps(page):
    """The step counts that a lab shows."""
    found = re.findall(r"step (\d+) of", page.locator(".jp-OutputArea-output", has=page.locator(".widget-play")).first.inner_text())
    return sum(map(int, found)) if len(found) == 2 else 0

def rising(page, since):
    """Wait until the step count is greater than `since`; return it."""
    end = time.monotonic() + WAIT / 1000
    while (now := steps(page)) <= since:
        assert time.monotonic() < end, f"the step count stays at {now}"
        page.wait_for_timeout(50)
    return now

def thread(server, state):
    """Wait until the training thread works or rests."""
    end = time.monotonic() + WAIT / 1000
    while (server[1] / "thread").read_text() != state:
        assert time.monotonic() < end, f"the thread does not come to the state {state!r}"
        time.sleep(.05)


def test_lab_runs_pauses_steps_resets_saves_and_rests_when_closed(notebook, server):
    page = notebook("lab")
    before, play = picture(page), page.locator(".widget-play button").first
    play.click()
    count = rising(page, 0); before = changed(page, before)
    rising(page, count)
    page.evaluate(f"() => {{ {PANEL}.content.activeCellIndex = 4; window.jupyterapp.commands.execute('notebook:run-cell'); }}")
    until(page, f"() => {PANEL}.content.widgets[4].model.executionCount > 5")    # while it trains
    assert "the kernel answers: 42" in page.locator(".jp-OutputArea").last.inner_text()
    thread(server, "works")

    play.click(); thread(server, "rests")
    page.wait_for_timeout(300); count = steps(page); page.wait_for_timeout(500)
    assert steps(page) == count
    page.get_by_role("button", name="step", exact=True).first.click()
    assert rising(page, count) == count + 1

    page.get_by_role("button", name="save").first.click()
    page.get_by_text("go on with").first.wait_for()
    assert (server[1] / "runs/lab/disback/checkpoint.safetensors").is_file() and (server[1] / "runs/lab/path/path.json").is_file()
    page.get_by_role("button", name="save").first.click(); page.get_by_text("exists: choose another folder").first.wait_for()    # words, no stack trace

    shoot(page, "lab")
    before = picture(page)
    page.get_by_role("button", name="reset").first.click(); page.get_by_text("press ▶").first.wait_for(); before = changed(page, before)
    page.get_by_role("button", name="place a mode").first.click(); before = changed(page, before)    # other data
    play.click(); rising(page, 0); page.get_by_role("button", name="reset").first.click(); thread(server, "rests")
    play.click(); rising(page, 0); thread(server, "works")
    page.close()                                    # nobody is there any more
    thread(server, "rests")


def test_lab_command_serves_the_tutorials_on_loopback_with_a_token(tmp_path):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = os.environ | {f"JUPYTER_{k}_DIR": str(tmp_path / k) for k in ("CONFIG", "DATA", "RUNTIME")} | dict(HOME=str(tmp_path), PYTHONUNBUFFERED="1")
    command = [Path(sys.executable).with_name("disback"), "lab", "--out", str(tmp_path / "tutorials"), "--port", str(port), "--no-browser"]
    with open(tmp_path / "log", "w") as log: process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True,
                                                                     preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))    # a shell's background jobs ignore Ctrl-C
    said = lambda: (tmp_path / "log").read_text()
    try:
        end = time.monotonic() + 90
        while True:
            assert process.poll() is None and time.monotonic() < end, said()[-3000:]
            try: token = re.search(r"http://127\.0\.0\.1:\d+/lab\?token=(\w+)", said())[1]; urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).read(); break
            except (OSError, TypeError): time.sleep(.2)
        contents = f"http://127.0.0.1:{port}/api/contents"
        with pytest.raises(urllib.error.HTTPError, match="403"): urllib.request.urlopen(contents, timeout=5)
        served = json.load(urllib.request.urlopen(f"{contents}?token={token}", timeout=5))
        assert {f["name"] for f in served["content"]} == {p.name for p in (Path(__file__).parents[1] / "nbs" / "tutorials").glob("*.ipynb")}
        os.killpg(process.pid, signal.SIGINT)    # Ctrl-C
        assert process.wait(30) == 0 and "Traceback" not in said(), said()[-3000:]
        with pytest.raises(OSError): urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5)
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
