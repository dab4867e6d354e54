"""Virtual environments, one for each release of transformers, that borrow torch from the environment that runs this."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

RELEASES = ("4.48.*", "4.53.*", "4.57.*", "5.0.*", "latest")
"""What pip is asked for; `latest` is the newest that pip finds."""


def environment(release: str, root: Path) -> Path:
    """The Python of an environment with that release of transformers, made if it is not there.

    The environment holds transformers and those of its dependencies that the running environment has in another
    version; a .pth file puts the running environment (torch, z3, attnlower) behind it.

    Args:
        release: one of `RELEASES`, or a version such as ``4.55.4``.
        root: folder of the environments; kept between runs.

    Raises:
        subprocess.CalledProcessError: if pip cannot install the release.
    """
    home = root / release.replace("*", "x")
    python = home / "bin" / "python"
    done = home / ".installed"
    if done.exists() and done.read_text() == sys.executable:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)], check=True)
    site = next((home / "lib").glob("python*/site-packages"))
    borrowed = sysconfig.get_paths()["purelib"]
    # addsitedir and not a plain path: the .pth files there (an editable install) count as well
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({borrowed!r})\n")
    wanted = "transformers" if release == "latest" else f"transformers=={release}"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    # a pip that sees the borrowed packages takes what fits of them and leaves them where they are
    upgrade = ["--upgrade"] if release == "latest" else []
    subprocess.run([*pip, *upgrade, wanted], check=True)
    done.write_text(sys.executable)
    return python
