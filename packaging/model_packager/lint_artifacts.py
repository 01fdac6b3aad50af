"""A manifest's artifacts: where they are, what is done with them, and who may read them."""

import base64
import binascii
import re

from edge_agent.errors import shown
from model_packager.lint_findings import BOTH, JAVA, LITE, Spot, nearest

KEYS = ("Uri", "Unarchive", "Permission", "Digest", "Algorithm")
PERMISSIONS = ("NONE", "OWNER", "ALL")
ALGORITHM = "SHA-256"
SCHEMES = ("s3", "greengrass", "docker")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):(.*)", re.DOTALL)
_S3 = re.compile(r"//[^/\s]+/(?:[^/]+/)*[^/]+")
_PLACES = "s3://<bucket>/<key>, greengrass:<file> or docker:<image>"


def check(artifacts: Spot, *, of_model: bool) -> list[Spot]:
    """Check artifacts; return the `Unarchive` of those that are zips."""
    names: set[str] = set()
    zips = []
    for artifact in artifacts.items():
        keys = artifact.keys(KEYS, needed=("Uri",))
        scheme = _check_uri(keys["Uri"], names) if "Uri" in keys else None
        archive = keys["Unarchive"].text() if "Unarchive" in keys else None
        if archive is not None:
            _check_choice(keys["Unarchive"], archive, ("NONE", "ZIP"), "unarchive", "kind of archive")
        if archive == "ZIP":
            zips.append(keys["Unarchive"])
        _check_permission(artifact, keys.get("Permission"), of_model=of_model and scheme != "docker")
        if "Digest" in keys:
            _check_digest(keys["Digest"])
        if "Algorithm" in keys and (algorithm := keys["Algorithm"].text()) not in {None, ALGORITHM}:
            keys["Algorithm"].report(
                "algorithm", f"{shown(algorithm or '')} is no algorithm for digests; write `{ALGORITHM}`."
            )
    return zips


def _check_choice(spot: Spot, value: str, known: tuple[str, ...], rule: str, what: str) -> None:
    if value not in known:
        near = nearest(value, known)
        told = f"write `{near}`" if near else f"write one of {', '.join(known)}"
        spot.report(rule, f"{shown(value)} is no {what}; {told}.")


def _check_uri(spot: Spot, names: set[str]) -> str | None:
    """Check where an artifact is, and return the scheme where that is known."""
    uri = spot.text()
    if uri is None:
        return None
    found = _URI.fullmatch(uri)
    scheme = found[1].lower() if found else ""
    if not found or scheme not in SCHEMES:
        why = f"no nucleus fetches from {scheme}" if found else "it has no scheme"
        told = "put the file into a bucket of S3, and write" if found else "write"
        spot.report("artifact-uri", f"{shown(uri)} is no place of an artifact, as {why}; {told} {_PLACES}.")
        return None
    if found[1] != scheme:
        spot.report(
            "artifact-uri", f"Nucleus lite knows the scheme {found[1]} in lower case only; write `{scheme}:`.", LITE
        )
    if not (_S3.fullmatch(found[2]) if scheme == "s3" else found[2].strip("/")):
        spot.report("artifact-uri", f"{shown(uri)} names no file; write {_PLACES}.")
        return scheme
    name = found[2].rpartition("/")[2]
    if scheme != "docker":
        if name in names:
            spot.report(
                "artifact-name",
                f"Another artifact of this manifest is called {shown(name)}, too, and one overwrites the other; rename one.",
            )
        names.add(name)
    return scheme


def _check_permission(artifact: Spot, permission: Spot | None, *, of_model: bool) -> None:
    values = {}
    for key, spot in (permission.keys(("Read", "Execute")) if permission else {}).items():
        values[key] = spot.text()
        if (value := values[key]) is not None:
            _check_choice(spot, value, PERMISSIONS, "permission", "permission")
    # Who may execute a file may read it; nucleus lite lets everybody where nothing is said.
    if of_model and values.get("Read") != "ALL" and values.get("Execute") != "ALL":
        (permission or artifact).report(
            "model-permission",
            "The agent reads the model and may run as another user than this component; add `Read: ALL` to Permission.",
            BOTH if permission else JAVA,
        )


def _check_digest(spot: Spot) -> None:
    digest = spot.text()
    if digest is None:
        return
    try:
        size = len(base64.b64decode(digest, validate=True))
    except (binascii.Error, ValueError):
        size = -1
    if size != 32:
        hint = ", and this seems to be hexadecimal" if re.fullmatch("[0-9a-fA-F]{64}", digest) else ""
        spot.report(
            "digest",
            f"{shown(digest)} is not the base64 of a SHA-256, which has 32 bytes{hint}; write the base64, or leave Digest "
            "to Greengrass, which computes it.",
        )
