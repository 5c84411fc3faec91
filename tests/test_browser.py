"""The widgets in a real browser: JupyterLab and Notebook 7 in headless Chromium, driven by mouse and keys.

Without Chromium the tests are skipped; DISBACK_BROWSER=required makes that a failure. Screenshots go to
DISBACK_SCREENSHOTS, if it is set."""
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
if not CHROMIUM and os.environ.get("DISBACK_BROWSER") == "required":
    raise RuntimeError("Chromium is required here and not installed.")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")

ROOT = Path(__file__).parents[1]
FLAGS = ("--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
         "--disable-background-networking --disable-component-update --disable-sync --disable-default-apps "
         "--disable-extensions").split()
WAIT = 90  # seconds, for anything; nothing here is timed
# the open notebook
PANEL = "Array.from(window.jupyterapp?.shell.widgets('main') ?? []).find(w => w.sessionContext && w.content)"

IMPORTS = """\
import pathlib, threading, time, torch
from disback.widgets import DistillationLab, Gallery, MismatchExplorer, PathStepper, RaceReplay, example"""
AN_EXAMPLE = "shown = example()"
A_FOLDER = """\
from disback.cli import main
few = '--data ring --pretrain-steps 50 --degrade-steps 10 --steps 40'
main(['demo', '--out', 'demo', *few.split()])"""
A_WATCH = """\
def watch():
    while True:
        pathlib.Path('thread').write_text('rests' if lab.thread is None else 'works')
        time.sleep(.1)
threading.Thread(target=watch, daemon=True).start()"""
NOTEBOOKS = {
    "stepper": [IMPORTS, AN_EXAMPLE, "PathStepper(shown.path, shown.student, shown.data)"],
    "explorer": [IMPORTS, AN_EXAMPLE, "MismatchExplorer(shown.recorder, shown.path)"],
    "replay": [IMPORTS, AN_EXAMPLE, "RaceReplay(shown.races, 'fake score learns')"],
    "placed": [IMPORTS, "lab = DistillationLab('placed modes', teacher_steps=50)\nlab"],
    "gallery": [IMPORTS, A_FOLDER, "Gallery('demo')"],
    "lab": [IMPORTS,
            "lab = DistillationLab(budget=20000, teacher_steps=50, record=6, lr=1e-4)\nlab.lease = 4.\nlab",
            "other = DistillationLab(budget=20000, teacher_steps=50)\nother",
            A_WATCH,
            "print('the kernel answers:', 6 * 7)"]}


def wait(condition, what):
    """Wait until a condition, a function, is true; return its value."""
    end = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain for {what() if callable(what) else what}"
        time.sleep(.05)
    return value


def until(page, script, arg=None):
    """Wait until a script, which may be asynchronous, returns true on the page."""
    wait(lambda: page.evaluate(script, arg), script)


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url):
    """What a server answers; None if nobody is there."""
    try: return urllib.request.urlopen(url, timeout=5).read()
    except urllib.error.HTTPError: raise
    except OSError: return None


def environment(home, **more):
    """An environment in which Jupyter has folders of its own."""
    folders = {f"JUPYTER_{k}_DIR": str(home / k) for k in ("CONFIG", "DATA", "RUNTIME")}
    return os.environ | folders | dict(HOME=str(home), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)) | more


def written(folder, name):
    """Write a notebook; return its name there. All but the lab's have one name in turn, so one kernel, which
    imports everything once."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in NOTEBOOKS[name]])
    nb.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
    file = folder / ("lab.ipynb" if name == "lab" else "shown.ipynb")
    nbformat.write(nb, file)
    return file.stem


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab with folders of its own; yields its address with the token, and the notebooks' folder."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    token, port = secrets.token_hex(16), free_port()
    settings = home / "CONFIG" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')    # no pop-up
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}",
               "--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True",
               "--LabApp.extension_manager=readonly",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    env = environment(home, JUPYTER_TOKEN=token, DISBACK_PROGRESS="0", PYTHON_KEYRING_BACKEND="")
    with open(home / "log", "w") as log:
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        said = lambda: (home / "log").read_text()[-3000:]
        wait(lambda: process.poll() is None and get(f"http://127.0.0.1:{port}/api?token={token}"), said)
        yield f"http://127.0.0.1:{port}/{{}}/{{}}.ipynb?token={token}&reset", folder
    finally:
        process.terminate()
        process.wait(WAIT)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    flags = [*FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


# the panel that is there now has run all its cells
ALL_RUN = f"""async () => {{
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
    return kernel.status === 'idle'
        && panel.content.widgets.every(c => c.model.type !== 'code' || c.model.executionCount);
}}"""
FAILED = ('[data-mime-type="application/vnd.jupyter.error"], '
          '[data-mime-type="application/vnd.jupyter.stderr"]')


@pytest.fixture
def notebook(server, browser):
    """A function that opens a notebook and runs all its cells; in the end nothing has gone wrong there."""
    address, folder = server
    opened, wrong = [], []

    def hear(message):
        if message.type == "error" and not ignorable(message.text): wrong.append(f"console: {message.text}")

    def open_and_run(name, front="lab/tree", width=1366, height=768, scale=1):    # a laptop
        page = browser.new_page(viewport=dict(width=width, height=height), device_scale_factor=scale)
        page.set_default_timeout(1000 * WAIT)
        page.on("pageerror", lambda e: ignorable(str(e)) or wrong.append(f"page error: {e}"))
        page.on("console", hear)
        opened.append((f"{name}_{front[0]}{scale}", page))
        page.goto(address.format(front, written(folder, name)))
        until(page, ALL_RUN)
        return page

    yield open_and_run
    for name, page in opened:
        if page.is_closed(): continue
        shoot(page, name)
        assert page.locator(FAILED).count() == 0
        page.close()
    assert not wrong, wrong


def widget(page):
    """The first widget on a page."""
    return page.locator(".jp-OutputArea-output", has=page.locator(".widget-image")).first


def shoot(page, name):
    """Keep a picture of the page, the widget alone beside it."""
    if "DISBACK_SCREENSHOTS" not in os.environ: return
    where = Path(os.environ["DISBACK_SCREENSHOTS"])
    where.mkdir(parents=True, exist_ok=True)
    if page.locator(".widget-image").count():
        page.locator(".widget-image").first.scroll_into_view_if_needed()
        widget(page).screenshot(path=where / f"{name}_widget.png")
    page.screenshot(path=where / f"{name}.png")


def ignorable(text):
    """What JupyterLab itself says of a server that has no user settings yet, and of closed connections, and
    Notebook 7 of plugins of JupyterLab that it has not."""
    own = (r"Failed to load resource.*40[034]|favicon|net::ERR_NAME_NOT_RESOLVED"
           r"|reading 'schema'|'filebrowser:open-path' not registered")
    return bool(re.search(own, text))


def picture(page):
    """The picture of the first widget."""
    return page.locator(".widget-image").first.get_attribute("src")


def changed(page, before):
    """Wait until the picture is another one than `before`; return it."""
    until(page, """before => {
        const picture = document.querySelector('.widget-image');
        return picture.src !== before && picture.complete;
    }""", before)
    return picture(page)


def slider(page, label):
    """The slider with a label that begins like this."""
    own = page.locator(".widget-label", has_text=re.compile(f"^{label}"))
    return page.locator(".widget-inline-hbox", has=own).first


def press(page, label, key):
    """Press a key on a slider."""
    slider(page, label).locator(".noUi-handle").focus()
    page.keyboard.press(key)


def choose(page, option):
    """Choose from the drop-down list."""
    page.locator(".widget-dropdown select").select_option(option)


def says(page, label, text):
    """Wait until the read-out of a slider says `text`."""
    readout = slider(page, label).locator(".widget-readout")
    wait(lambda: readout.inner_text().strip() == text, f"{label} to say {text}")


def test_path_stepper_follows_keys_mouse_and_play(notebook):
    page = notebook("stepper")
    before = picture(page)
    for key, node in [("ArrowRight", "0.25"), ("End", "4"), ("Home", "0")]:
        press(page, "node", key)
        says(page, "node", node)
        before = changed(page, before)

    handle = slider(page, "node").locator(".noUi-handle").bounding_box()    # drag to the right end
    bar = slider(page, "node").locator(".noUi-target").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(bar["x"] + bar["width"], bar["y"] + bar["height"] / 2, steps=5)
    page.mouse.up()
    says(page, "node", "4")

    press(page, "node", "Home")
    says(page, "node", "0")
    before = picture(page)
    page.locator(".widget-play button").first.click()
    says(page, "node", "4")    # it walks to the end by itself
    before = changed(page, before)
    press(page, "σ", "ArrowRight")
    changed(page, before)


def test_notebook_7_keeps_arrow_keys_and_leaves_the_others_and_the_buttons(notebook):
    page = notebook("stepper", front="notebooks")
    before = picture(page)
    for key, node in [("PageUp", "1.25"), ("End", "4"), ("Home", "0")]:
        press(page, "node", key)
        says(page, "node", node)
        before = changed(page, before)
    page.get_by_role("button", name="›").first.focus()
    page.keyboard.press("Space")
    says(page, "node", "0.25")
    before = changed(page, before)
    page.get_by_title("node: one back").first.click()
    says(page, "node", "0")
    changed(page, before)


def test_enlarged_twice_the_picture_is_sharp_and_keeps_its_shape(notebook):
    page = notebook("stepper", width=683, height=384, scale=2)    # 200 %
    image = page.locator(".widget-image").first
    wide, high = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    box = image.bounding_box()
    assert wide >= 2 * box["width"], "a dot of the screen has no dot of the picture"
    assert abs(wide / high - box["width"] / box["height"]) < .01, "stretched"
    assert box["x"] + box["width"] <= 683


def test_in_the_dark_words_are_light_and_the_picture_has_a_ground(notebook):
    page = notebook("stepper")
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', "
                  "{theme: 'JupyterLab Dark'})")
    until(page, "() => document.body.dataset.jpThemeLight === 'false'")
    light = """of => { const [r, g, b] = getComputedStyle(of).color.match(/[0-9.]+/g).map(Number);
                       return (r + g + b) / 765; }"""
    for words in (".widget-label", ".widget-readout", ".widget-html-content"):
        seen = page.locator(words).first
        wait(lambda seen=seen: seen.evaluate(light) > .6, f"{words} to be light")
    corner = """image => { const c = document.createElement('canvas').getContext('2d');
                           c.drawImage(image, 0, 0); return [...c.getImageData(1, 1, 1, 1).data]; }"""
    assert page.locator(".widget-image").first.evaluate(corner) == [255] * 4
    shoot(page, "dark")


def test_race_replay_walks_and_switches(notebook):
    page = notebook("replay")
    before = picture(page)
    press(page, "forward passes", "ArrowRight")
    says(page, "forward passes", "150")
    before = changed(page, before)
    choose(page, "4 times as fast")
    before = changed(page, before)
    page.locator(".widget-play button").first.click()
    says(page, "forward passes", "6000")
    changed(page, before)


def test_a_click_places_a_mode(notebook):
    page = notebook("placed")
    before, image = picture(page), page.locator(".widget-image").first
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    image.click(position=dict(x=.15 * box["width"], y=.3 * box["height"]))
    before = changed(page, before)
    page.get_by_label("data", exact=True).select_option("ring")
    before = changed(page, before)
    image.click(position=dict(x=.15 * box["width"], y=.3 * box["height"]))
    page.get_by_text("a click places a mode when").first.wait_for()    # no race is thrown away
    assert picture(page) == before


def test_mismatch_explorer_follows_its_controls(notebook):
    page = notebook("explorer")
    before = picture(page)
    press(page, "step", "ArrowRight")
    says(page, "step", "27")
    before = changed(page, before)
    press(page, "σ", "ArrowLeft")
    before = changed(page, before)
    press(page, "target node", "End")
    before = changed(page, before)
    choose(page, "target to teacher")
    before = changed(page, before)
    page.locator(".widget-play button").first.click()
    says(page, "step", "839")
    changed(page, before)


def test_gallery_turns_its_pages(notebook):
    page = notebook("gallery")
    before = picture(page)
    choose(page, "student: samples over training")
    before = changed(page, before)
    press(page, "at", "End")
    says(page, "at", "40")
    before = changed(page, before)
    choose(page, "path: nodes")
    before = changed(page, before)
    press(page, "at", "ArrowRight")
    says(page, "at", "node 1")
    changed(page, before)


def steps(page):
    """The steps that both arms of a lab have taken, as it shows them."""
    found = re.findall(r"step (\d+) of", widget(page).inner_text())
    return sum(map(int, found)) if len(found) == 2 else 0


def at_rest(page):
    """Wait until the step count stays what it is for half a second; return it."""
    def same():
        before = steps(page)
        page.wait_for_timeout(500)
        return before == steps(page)
    wait(same, "a step count at rest")
    return steps(page)


def rising(page, since):
    """Wait until the step count is greater than `since`; return it."""
    wait(lambda: steps(page) > since, f"more than {since} steps")
    return steps(page)


def thread(server, state):
    """Wait until the training thread works or rests."""
    file = server[1] / "thread"
    wait(lambda: file.read_text() == state, f"the thread that {state}")


def press_button(page, words):
    """Press a button of the first widget."""
    page.get_by_role("button", name=words).first.click()


def test_lab_runs_pauses_steps_resets_saves_and_rests_when_closed(notebook, server):
    page = notebook("lab")
    before, play = picture(page), page.locator(".widget-play button").first
    play.click()
    count = rising(page, 0)
    before = changed(page, before)
    rising(page, count)
    page.evaluate(f"() => {{ {PANEL}.content.activeCellIndex = 4; "
                  "window.jupyterapp.commands.execute('notebook:run-cell'); }")
    until(page, f"() => {PANEL}.content.widgets[4].model.executionCount > 5")    # while it trains
    assert "the kernel answers: 42" in page.locator(".jp-OutputArea").last.inner_text()
    thread(server, "works")

    play.click()
    thread(server, "rests")
    count = at_rest(page)    # what was said last may still be on its way
    press_button(page, re.compile("^step$"))
    assert rising(page, count) == count + 1

    press_button(page, "save")
    page.get_by_text("go on with").first.wait_for()
    assert (server[1] / "runs/lab/disback/checkpoint.safetensors").is_file()
    assert (server[1] / "runs/lab/path/path.json").is_file()
    press_button(page, "save")
    page.get_by_text("exists: choose another folder").first.wait_for()    # words, no stack trace

    shoot(page, "lab")
    before = picture(page)
    press_button(page, "reset")
    page.get_by_text("press ▶").first.wait_for()
    before = changed(page, before)
    page.get_by_label("data", exact=True).first.select_option("placed modes")
    before = changed(page, before)    # nothing is placed yet
    press_button(page, "place a mode")
    before = changed(page, before)    # other data
    play.click()
    rising(page, 0)
    press_button(page, "reset")
    thread(server, "rests")
    play.click()
    rising(page, 0)
    thread(server, "works")
    page.close()                      # nobody is there any more
    thread(server, "rests")


def test_lab_command_opens_on_something_alive_behind_a_token(browser, tmp_path):
    port = free_port()
    command = [Path(sys.executable).with_name("disback"), "lab", "--out", str(tmp_path / "lab"),
               "--port", str(port), "--no-browser"]
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)    # background jobs ignore Ctrl-C
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=environment(tmp_path, PYTHONUNBUFFERED="1"), stdout=log,
                                   stderr=log, start_new_session=True, preexec_fn=heed)
    said = lambda: (tmp_path / "log").read_text()
    api = f"http://127.0.0.1:{port}/api"
    try:
        wait(lambda: process.poll() is None and get(api), said)
        address = re.search(r"http://127\.0\.0\.1:\d+/lab/tree/tutorials/00_\w+\.ipynb\?token=(\w+)", said())
        with pytest.raises(urllib.error.HTTPError, match="403"): get(f"{api}/contents")
        for folder, files in {"tutorials": "tutorials/*.ipynb", "experiments": "experiments/*.ipynb"}.items():
            served = json.loads(get(f"{api}/contents/{folder}?token={address[1]}"))
            assert {f["name"] for f in served["content"]} == {p.name for p in (ROOT / "nbs").glob(files)}
        look_at_the_first_page(browser, address[0])
        os.killpg(process.pid, signal.SIGINT)    # Ctrl-C
        assert process.wait(30) == 0 and "Traceback" not in said(), said()[-3000:]
        assert get(api) is None
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)


def look_at_the_first_page(browser, address):
    """Two clicks, and a slider moves; nothing has popped up."""
    page = browser.new_page(viewport=dict(width=1366, height=768))
    page.set_default_timeout(1000 * WAIT)
    page.goto(address)
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").first

    def run():    # two clicks; JupyterLab drops those that come before the kernel
        page.locator(".jp-CodeCell .jp-InputArea-editor").first.click()
        page.locator('[data-command="notebook:run-cell-and-select-next"]').first.click()
        page.wait_for_timeout(2000)
        return prompt.inner_text().strip() != "[ ]:"

    wait(run, "the first cell to run")
    page.locator(".widget-image").first.wait_for()
    before = picture(page)
    press(page, "node", "ArrowRight")
    changed(page, before)
    shoot(page, "first_page")
    assert page.locator(".jp-toast, .Toastify__toast").count() == 0
    page.close()
