"""Where a component goes: a folder, or a prefix in an S3 bucket. A version appears there whole, or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from edge_agent.errors import extra
from model_packager import deployments, files
from model_packager.errors import PackagingRefused

NEEDS_EXTRA = f"An output on S3 needs the `boto3` package; {extra('s3')}."
S3 = "s3://"
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
COMPONENT = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]+")
VERSION = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9.+-]*")
# Within a version that is being copied: what is for local deployments.
DEPLOYED = ".deployed"
# Seconds, and attempts in all, after which an endpoint is out of reach.
CONNECT_TIMEOUT, READ_TIMEOUT, ATTEMPTS = 5, 60, 3
PERMISSIONS = "s3:ListBucket, s3:ListBucketMultipartUploads, s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload"
BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
}


class Destination(Protocol):
    """A place for components; its text form is what `of` made it from, a relative path made absolute."""

    def taken(self, component: str, version: str) -> bool:
        """Return whether the version is there already."""

    def partial(self, component: str, version: str, job_name: str) -> str | None:
        """Return what `clear` is to be given if the job dies while it publishes; None where nothing could be left."""

    def publish(self, folder: Path, component: str, version: str, job_name: str) -> str:
        """Put the content of `folder` there as the version; return its path or URI.

        Raises:
            PackagingRefused: the version is there already, or the place cannot be written. Nothing is left behind.

        """

    def artifact_uri(self, component: str, version: str, file_name: str) -> str:
        """Return the URI that a recipe gives for a file of the version."""


def of(output: str) -> Destination:
    """Return the destination that `output` names: the path of a folder, or s3://bucket/prefix.

    Raises:
        PackagingRefused: it is neither.

    """
    if not output.startswith(S3):
        if not output or "://" in output or "\0" in output:
            raise PackagingRefused(f"--output {output!r} is neither a folder nor of the form s3://bucket/prefix.")
        return LocalFolder(Path(os.path.abspath(output)))  # noqa: PTH100  (without the links resolved, but without "..")
    bucket, _, prefix = output.removeprefix(S3).partition("/")
    parts = prefix.strip("/").split("/")
    if (
        not BUCKET.fullmatch(bucket)
        or not prefix.isprintable()
        or {".", ".."} & {*parts}
        or ("" in parts and parts != [""])
    ):
        raise PackagingRefused(f"--output {output!r} is not of the form s3://bucket/prefix.")
    return S3Prefix(bucket, "/".join(parts))


def clear(partial: str) -> None:
    """Remove what a job that died had begun to write; `partial` is what the destination named.

    Raises:
        PackagingRefused: it cannot be removed.

    """
    name = PurePosixPath(partial).name
    try:
        if not (name.startswith(".") and name.endswith(".new")):
            raise PackagingRefused("It is not what a packaging job leaves.")
        if partial.startswith(S3):
            bucket, _, journal = partial.removeprefix(S3).partition("/")
            with _explained(f"{S3}{bucket}"):
                _undo(_client(), bucket, journal)
        else:
            LocalFolder(Path(partial).parent.parent).clear(Path(partial))
    except PackagingRefused as error:
        raise PackagingRefused(f"What was left in {partial} could not be removed; do it by hand. {error}") from None


@dataclass(frozen=True)
class LocalFolder:
    """A folder with `<component>/<version>/` below it; a version is copied beside its place and appears by one rename.

    What local deployments take of it comes into place before, and counts as remains as long as the version is not there.
    """

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def taken(self, component: str, version: str) -> bool:
        """Return whether there is anything under the version's name."""
        return os.path.lexists(self._place(component, version))

    def partial(self, component: str, version: str, job_name: str) -> str:
        """Return the folder that the version is copied to."""
        return str(self._place(component, version).with_name(f".{version}.{job_name}.new"))

    def publish(self, folder: Path, component: str, version: str, job_name: str) -> str:
        """Copy `folder`, files 0644 and folders 0755, flush it to the disk, and let it appear; return its path."""
        place, beside = self._place(component, version), Path(self.partial(component, version, job_name))
        try:
            if self.taken(component, version):
                raise _exists(component, version, self)
            files.make_folder(self.folder)
            with self._alone():
                files.make_folder(beside.parent)
                beside.mkdir()
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            files.copy(folder, beside)
            deployments.prepare(folder, beside / DEPLOYED)
            with self._alone():
                if self.taken(component, version):
                    raise _exists(component, version, self)
                deployments.place(beside / DEPLOYED, self.folder, component, version)
                beside.rename(place)
        except BaseException as error:
            left = _cleared(str(beside))
            if not isinstance(error, OSError):
                raise
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and self.taken(component, version):
                raise _exists(component, version, self) from None
            raise self._unwritable(error, left) from None
        with contextlib.suppress(OSError):  # it is there, and whole
            files.flush(beside.parent)
        return str(place)

    def clear(self, beside: Path) -> None:
        """Remove what a job has copied to `beside` and, unless the version is there, what it had put into place.

        Raises:
            PackagingRefused: it cannot be removed.

        """
        component, version = (
            beside.parent.name,
            beside.name.removeprefix(".").rsplit(".", 2)[0],
        )  # a job's name has no dot
        try:
            with self._alone():
                if os.path.lexists(beside):
                    if not self.taken(component, version):
                        deployments.withdraw(self.folder, component, version)
                    shutil.rmtree(beside)
                with contextlib.suppress(OSError):
                    beside.parent.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise PackagingRefused(f"{error.strerror}.") from None

    def artifact_uri(self, component: str, version: str, file_name: str) -> str:
        """Return the URI with gdk's placeholder BUCKET_NAME, since nobody knows yet where the files will be uploaded."""
        return f"s3://BUCKET_NAME/{_path(component, version)}/{file_name}"

    def _place(self, component: str, version: str) -> Path:
        if component in {deployments.RECIPES, deployments.ARTIFACTS}:
            raise PackagingRefused(
                f"Component {component!a} cannot have a folder of its own in {self}, where {component} is for local "
                "deployments; give another --component-name."
            )
        return self.folder / _path(component, version)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other jobs from putting anything into place, or away, meanwhile."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # not every network's file system locks folders
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _unwritable(self, error: OSError, left: str = "") -> PackagingRefused:
        reason = error.strerror or str(error)
        return PackagingRefused(
            f"The output folder {self.folder} cannot be written: {reason}. Mend that, or give another --output.{left}"
        )


@dataclass(frozen=True)
class S3Prefix:
    """A prefix with `<component>/<version>/<file>` below it, in a bucket of AWS or whatever boto3 is configured for.

    Before its first file a job puts a journal beside the version, `<component>/.<version>.<job>.new`: it keeps other jobs
    away, it tells what to remove after a crash, and it is removed last.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{S3}{self.bucket}/{self.prefix}".rstrip("/")

    def taken(self, component: str, version: str) -> bool:
        """Return whether there is any key under the version's prefix."""
        with _explained(str(self)):
            return bool(_keys(_client(), self.bucket, self._key(component, version) + "/"))

    def partial(self, component: str, version: str, job_name: str) -> str:
        """Return the URI of the journal."""
        return f"{S3}{self.bucket}/{self._journal(component, version, job_name)}"

    def publish(self, folder: Path, component: str, version: str, job_name: str) -> str:
        """Upload the files of `folder`, without its folders, the recipe last; return the URI of the version's prefix."""
        journal = self._journal(component, version, job_name)
        # The recipe is what deploys a component: where there is one, the rest is there too.
        files = sorted(
            (one for one in folder.iterdir() if one.is_file()), key=lambda one: ("recipe" in one.name, one.name)
        )
        keys = {f"{self._key(component, version)}/{one.name}": one for one in files}
        with _explained(str(self)):
            client = _client()
            _write_journal(client, self.bucket, journal, [])
        try:
            with _explained(str(self)):
                self._claim(client, component, version, journal)
                # From here on the keys are nobody else's: another job would have seen the journal.
                _write_journal(client, self.bucket, journal, [*keys])
                for key, path in keys.items():
                    with path.open("rb") as file:
                        client.upload_fileobj(file, self.bucket, key)
                client.delete_object(Bucket=self.bucket, Key=journal)
        except BaseException as error:
            left = _cleared(self.partial(component, version, job_name))
            if left and isinstance(error, PackagingRefused):
                raise PackagingRefused(f"{error}{left}") from None
            raise
        return f"{S3}{self.bucket}/{self._key(component, version)}"

    def artifact_uri(self, component: str, version: str, file_name: str) -> str:
        """Return the URI of a file of the version."""
        return f"{S3}{self.bucket}/{self._key(component, version)}/{file_name}"

    def _claim(self, client: Any, component: str, version: str, journal: str) -> None:
        """Raise PackagingRefused unless the version is this job's to write; its journal is there already.

        Two jobs that come at the same instant see each other's journal, and both go.
        """
        beside = journal.rpartition("/")[0] + f"/.{version}."
        for key in _keys(client, self.bucket, beside):
            version_there, _, job_name = key.removesuffix(".new").rpartition(".")
            if key != journal and version_there + "." == beside:
                raise PackagingRefused(
                    f"The packaging job {job_name} is writing component {component} version {version} to {self}; wait for it. "
                    f"If it was ended, remove {S3}{self.bucket}/{key} and what it lists."
                )
        if _keys(client, self.bucket, self._key(component, version) + "/"):
            raise _exists(component, version, self)

    def _key(self, component: str, version: str) -> str:
        return f"{self.prefix}/{_path(component, version)}".lstrip("/")

    def _journal(self, component: str, version: str, job_name: str) -> str:
        return self._key(component, version).removesuffix(version) + f".{version}.{job_name}.new"


def _path(component: str, version: str) -> str:
    """Return where a version is below any destination; names that could lead elsewhere are refused."""
    if not COMPONENT.fullmatch(component) or not VERSION.fullmatch(version):
        raise PackagingRefused(f"Component {component!a} version {version!a} cannot name a folder.")
    return f"{component}/{version}"


def _exists(component: str, version: str, where: object) -> PackagingRefused:
    return PackagingRefused(
        f"Component {component} version {version} exists already in {where}; give another --component-version."
    )


def _cleared(partial: str) -> str:
    """Clear; return a further sentence where that failed, else nothing."""
    try:
        clear(partial)
    except PackagingRefused as error:
        return f" {error}"
    return ""


def _client() -> Any:
    """Return an S3 client; endpoint, region and credentials come from boto3's own configuration."""
    session, config = import_module("boto3.session"), import_module("botocore.config")
    patience = config.Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
    )
    return session.Session().client("s3", config=patience)


def _keys(client: Any, bucket: str, prefix: str) -> list[str]:
    """Return the first keys (up to 1000) under a prefix."""
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return [one["Key"] for one in found.get("Contents", ())]


def _write_journal(client: Any, bucket: str, journal: str, keys: list[str]) -> None:
    client.put_object(Bucket=bucket, Key=journal, Body=json.dumps({"keys": keys}).encode())


def _undo(client: Any, bucket: str, journal: str) -> None:
    """Remove what a journal lists, in the reverse order, and the journal last; without a journal there is nothing."""
    try:
        listed = json.loads(client.get_object(Bucket=bucket, Key=journal)["Body"].read())["keys"]
    except client.exceptions.NoSuchKey:
        return
    # A job's name has no dot. Whatever a journal says, nothing outside its own version is touched.
    folder, _, name = journal.rpartition("/")
    version = f"{folder}/{name.removeprefix('.').rsplit('.', 2)[0]}/".lstrip("/")
    keys = [key for key in listed if key.startswith(version)]
    for key in keys:
        # Some stores list uploads under the exact key only.
        for upload in client.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", ()):
            if upload["Key"] == key:
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])
    for key in [*reversed(keys), journal]:
        client.delete_object(Bucket=bucket, Key=key)


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn the errors of boto3, and its absence, into sentences."""
    try:
        errors = import_module("botocore.exceptions")
        import_module("boto3")
    except ImportError:
        raise PackagingRefused(NEEDS_EXTRA) from None
    try:
        yield
    except errors.ClientError as error:
        raise PackagingRefused(_refusal(error, where)) from None
    except (errors.NoCredentialsError, errors.PartialCredentialsError, errors.CredentialRetrievalError) as error:
        raise PackagingRefused(
            f"There are no usable AWS credentials for {where} ({_one_sentence(error)}). Set AWS_PROFILE, or AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY."
        ) from None
    except (errors.ConnectionError, errors.HTTPClientError) as error:
        raise PackagingRefused(
            f"{where} cannot be reached ({_one_sentence(error)}). Check the network, or the endpoint in AWS_ENDPOINT_URL_S3 or "
            "the AWS profile."
        ) from None
    except (errors.BotoCoreError, import_module("boto3.exceptions").Boto3Error, ValueError) as error:
        raise PackagingRefused(
            f"{where} cannot be used ({_one_sentence(error)}). Check the AWS configuration."
        ) from None


def _refusal(error: Any, where: str) -> str:
    """Return the sentence for what S3 answered."""
    code, said = error.response["Error"].get("Code", "?"), error.response["Error"].get("Message", "")
    if code == "NoSuchBucket":
        return f"There is no bucket {where.removeprefix(S3).partition('/')[0]}. Make it, or give another --output."
    if code == "AccessDenied":
        return f"Access to {where} is denied ({error.operation_name}). The credentials need {PERMISSIONS} there."
    if code in BAD_CREDENTIALS:
        return (
            f"The AWS credentials for {where} are not accepted ({code}). Renew them, or choose others with AWS_PROFILE."
        )
    return f"{where} cannot be used: {error.operation_name} was answered with {code} ({said.rstrip('.')})."


def _one_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
