"""Fetches llama.cpp's sources, as the sdist of llama-cpp-python carries them, and prints their folder.

`pip download` would build the package's metadata for ten minutes; the index itself answers at once.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request

NAME, VERSION = "llama-cpp-python", "0.3.36"
FOLDER = f"llama_cpp_python-{VERSION}"


def index_url():
    """pip's index, if one is configured."""
    pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(pip, capture_output=True, text=True).stdout.strip()
    return os.environ.get("PIP_INDEX_URL") or configured or "https://pypi.org/simple"


def find_sdist():
    """URL and sha256 of the sdist."""
    page = f"{index_url().rstrip('/')}/{NAME}/"
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(page, headers=accept)) as answer:
        files = json.load(answer)["files"]
    sdist = next(f for f in files if f["filename"] == f"{FOLDER}.tar.gz")
    return urllib.parse.urljoin(page, sdist["url"]), sdist["hashes"]["sha256"]


def download(folder):
    url, sha256 = find_sdist()
    archive = folder / f"{FOLDER}.tar.gz"
    if not archive.exists():
        part = archive.with_suffix(".part")
        urllib.request.urlretrieve(url, part)
        part.rename(archive)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
        archive.unlink()
        sys.exit(f"{url} is not what the index says it is")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def main():
    folder = pathlib.Path(sys.argv[1])
    sources = folder / FOLDER / "vendor" / "llama.cpp"
    if not sources.exists():
        download(folder)
    print(sources)


main()
