"""Small components whose scripts tell what becomes of them, for tests of the nuclei's stand-ins."""

import shutil
from typing import Any

from support import greengrass_components as components
from support.greengrass_deployments import Deployment
from support.greengrass_site import Site

ONE, TWO = "com.example.One", "com.example.Two"
HARD = {ONE: {"VersionRequirement": ">=1.0.0", "DependencyType": "HARD"}}
SOFT = {ONE: {"VersionRequirement": ">=1.0.0", "DependencyType": "SOFT"}}
STAYS = "exec sleep 300"
# A startup step of both nuclei that is done at once.
UP = 'if [ -n "$NOTIFY_SOCKET" ]; then exec systemd-notify --ready; fi'

# A component's name, and the other arguments of components.component.
Part = tuple[str, dict[str, Any]]


def one(**lifecycle: Any) -> Part:
    """Return a component with a lifecycle."""
    return ONE, {"lifecycle": lifecycle}


def begin(site: Site, *parts: Part, version: str = "1.0.0", **more: Any) -> Deployment:
    """Begin to deploy components."""
    output = site.device.base / "output"
    shutil.rmtree(output, ignore_errors=True)
    for name, given in parts:
        components.component(output, name, version=version, **given)
    return site.device.deploy({name: version for name, _ in parts}, output, **more)


def deploy(site: Site, *parts: Part, version: str = "1.0.0", **more: Any) -> str:
    """Deploy components; return how it ended."""
    return begin(site, *parts, version=version, **more).wait()


def lines(site: Site, name: str = ONE) -> list[str]:
    """Return what a component has said."""
    return site.device.log(name).splitlines()
