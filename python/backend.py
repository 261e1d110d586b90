"""Builds the wheel (PEP 517): scikit-build-core's backend against the torch that is installed, then auditwheel puts Debian's libraries inside.

Extensions of torch are bound to the version that they are built with, so the wheel asks for that one.
"""
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from scikit_build_core import build as core

DEFAULT_TORCH = "2.13.0"
#: What comes with torch, found beside this package.
OF_TORCH = ["libtorch*.so*", "libc10*.so*", "libgomp*.so*", "libshm*.so*"]
#: For video files, 130 MiB with all that they need: the system's, loaded when there is a video. Others' licences hold for them, too.
OF_FFMPEG = ["libavformat.so*", "libavcodec.so*", "libavutil.so*", "libswscale.so*"]

build_sdist = core.build_sdist
get_requires_for_build_sdist = core.get_requires_for_build_sdist


def installed_torch() -> Distribution | None:
    """The environment's own torch, which an isolated build does not import; else that of the build's requirements."""
    for path in (sysconfig.get_path("purelib"), *sys.path):
        for each in distributions(name="torch", path=[path]):
            return each
    return None


class Metadata:
    """What pyproject.toml leaves to the build."""

    def dynamic_metadata(self, settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
        torch = installed_torch()
        version = re.search(r"project\(glimpse VERSION ([\d.]+)", Path("CMakeLists.txt").read_text(encoding="utf-8"))[1]
        return {"version": version, "dependencies": [f"torch=={torch.version.split('+')[0] if torch else DEFAULT_TORCH}", "numpy>=1.26",
                                                     "pillow>=10", "jinja2>=3.1", "tqdm"]}


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return core.get_requires_for_build_wheel(config_settings) + ([] if installed_torch() else [f"torch=={DEFAULT_TORCH}"])


get_requires_for_build_editable = get_requires_for_build_wheel


def settings_for(config_settings: dict[str, Any] | None) -> dict[str, Any]:
    """For scikit-build-core. Of our own: prebuilt=DIR takes what is built in DIR, a build tree of the same torch and Python."""
    given = dict(config_settings or {})
    if prebuilt := given.pop("prebuilt", None):
        return {"cmake.source-dir": "python/prebuilt", "cmake.define.PREBUILT": str(Path(prebuilt).resolve()), "build-dir": f"{prebuilt}/wheel",
                "build.targets": "all", **given}
    torch = installed_torch()
    if torch is None:
        raise SystemExit(f"glimpse: no torch to build against: pip install torch=={DEFAULT_TORCH} first")
    return {"cmake.define.Torch_DIR": str(torch.locate_file("torch/share/cmake/Torch")), **given}


def build_editable(wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None) -> str:
    return core.build_editable(wheel_directory, settings_for(config_settings), metadata_directory)


def build_wheel(wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None) -> str:
    with tempfile.TemporaryDirectory() as bare:
        built = core.build_wheel(bare, settings_for(config_settings), metadata_directory)
        exclude = [word for name in OF_TORCH + OF_FFMPEG for word in ("--exclude", name)]
        subprocess.run([sys.executable, "-m", "auditwheel", "repair", *exclude, "--wheel-dir", f"{bare}/repaired", f"{bare}/{built}"], check=True)
        (repaired,) = Path(bare, "repaired").iterdir()
        Path(wheel_directory, repaired.name).write_bytes(repaired.read_bytes())
        return repaired.name
