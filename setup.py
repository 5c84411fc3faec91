"""Package metadata, read from settings.ini, which nbdev reads too.

Every `NAME_requirements` line there is an extra: `pip install 'disback[NAME]'`."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
readme = here / "README.md"
suffix = "_requirements"
SHIPPED = {  # folder of share/disback: files of this checkout
    "": "nbs/[opm]*.ipynb",  # own, paper, measured
    "tutorials": "nbs/tutorials/*.ipynb",
    "experiments": "nbs/experiments/*.ipynb",
    "recipes": "recipes/*.toml",
    "examples": "examples/*.safetensors",
    "examples/path": "examples/path/*",
}
url = cfg["git_url"].rstrip("/")    # while it is empty, the package has no links
pages = {"Source": "", "Issues": "/issues", "Changelog": f"/blob/{cfg['branch']}/CHANGELOG.md"}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    project_urls={name: f"{url.removesuffix('.git')}{page}" for name, page in pages.items() if url},
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["*.pyi", "py.typed", "data/*"]},
    data_files=[(f"share/disback/{folder}", [str(f.relative_to(here)) for f in sorted(here.glob(files))])
                for folder, files in SHIPPED.items()],
    install_requires=cfg["requirements"].split(),
    extras_require={key[:-len(suffix)]: cfg[key].split() for key in cfg if key.endswith(suffix)},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
