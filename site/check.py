"""Fail if a built site has a dead link or would load anything from another host.

    python site/check.py _docs/html"""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a", "area"}    # every other element loads what it names, these kinds of `<link>` apart
PASSIVE = {"canonical", "search", "next", "prev", "author", "license", "index"}


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""
    def __init__(self, file):
        super().__init__()
        self.targets, self.loads, self.anchors = set(), set(), {"", "top"}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        for key, value in attrs:
            if key not in ("href", "src", "data") or value is None: continue
            self.targets.add(value)
            passive = tag in LINKS or tag == "link" and PASSIVE & set(given.get("rel", "").split())
            if not passive: self.loads.add(value)


def elsewhere(address):
    """Whether an address has a host."""
    return bool(urlsplit(address).netloc)


def problems(root):
    """`(sentences, links checked)` of the site in a folder."""
    root = Path(root).resolve()
    pages = {file: Page(file) for file in root.rglob("*.html")}
    found, n = set(), 0
    for file, page in pages.items():
        name = file.relative_to(root)
        found |= {f"{name} loads {address}" for address in page.loads if elsewhere(address)}
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc: continue
            n += 1
            goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            goal = goal / "index.html" if goal.is_dir() else goal
            dead = not goal.exists() or goal in pages and unquote(parts.fragment) not in pages[goal].anchors
            if dead: found.add(f"{name} links to {target}, which is not there")
    for file in root.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", file.read_text(encoding="utf-8"))
        found |= {f"{file.relative_to(root)} loads {a}" for a in addresses if elsewhere(a)}
    return sorted(found), n


if __name__ == "__main__":
    said, n = problems(sys.argv[1])
    print(f"{n} links, {len(said)} problems", *said, sep="\n")
    sys.exit(bool(said))
