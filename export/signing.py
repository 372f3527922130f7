"""The signature of a package, by the library `model-signing` (OpenSSF Model Signing, a Sigstore bundle). Torch-free.

What is signed is the manifest, which has the sha256 of every other file: so the signature holds for a package that was pulled in
part, too. `model_signing verify key manifest.json --signature model.sig --public_key key.pub` says the same without kdzoo; the
files are then checked by their sha256. Keys are elliptic curves (P-256, P-384, P-521) in PEM files; nothing asks the network.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import EnvironmentProblem, IntegrityError, UsageError
from ..zoo.files import sha256, write_bytes
from .package import MANIFEST, Package
from .package import SIGNATURE as SIGNATURE

NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


@dataclass(frozen=True)
class Signed:
    """A signature that was made or proved: `by` is `key` or `certificate`."""

    package: str
    signature: str
    manifest_sha256: str
    by: str


def sign(
    package: Package,
    private_key: Path,
    *,
    password: str | None = None,
    certificate: Path | None = None,
    chain: Sequence[Path] = (),
) -> Signed:
    """Write the signature of a whole package; one that is there is replaced.

    Args:
        password: of the key, where it is encrypted.
        certificate: of the key's public half; who trusts the root of its `chain` can verify without knowing the key.

    Raises:
        EnvironmentProblem: `model-signing` is not installed.
        UsageError: the key cannot be used, or the package was pulled in part. IntegrityError: a file is not what it should be.
    """
    signing = _library().signing
    if len(package.here) < len(package.document["files"]):
        raise UsageError(f"{package.folder} was pulled in part, and what is not here cannot be vouched for", hint="pull all of it")
    package.verify_files()
    if password is not None and certificate is not None:
        raise UsageError(
            "model-signing takes no password together with a certificate", hint="decrypt the key: openssl ec -in key.pem"
        )
    config, secret = signing.Config(), password.encode() if password is not None else None
    with _usable("the private key" if certificate is None else "the certificate or the private key", private_key):
        if certificate is None:
            config.use_elliptic_key_signer(private_key=private_key, password=secret)
        else:
            # An empty chain is none that the library can read.
            config.use_certificate_signer(
                private_key=private_key, signing_certificate=certificate, certificate_chain=chain or (certificate,)
            )
    manifest, path = package.folder / MANIFEST, package.folder / SIGNATURE
    with tempfile.TemporaryDirectory() as scratch:
        config.sign(manifest.resolve(), Path(scratch) / SIGNATURE)
        write_bytes(path, (Path(scratch) / SIGNATURE).read_bytes())
    return Signed(str(package.folder), str(path), sha256(manifest), "key" if certificate is None else "certificate")


def verify_signature(package: Package, *, public_key: Path | None = None, certificates: Sequence[Path] = ()) -> Signed:
    """Who has the private half of `public_key`, or a certificate under one of `certificates`, has signed this manifest.

    The files are not read here: `Package.verify_files` compares them with the manifest.

    Raises:
        EnvironmentProblem: `model-signing` is not installed. UsageError: the key or the certificates cannot be used.
        IntegrityError: there is no signature, it is of another manifest, or it is by someone else.
    """
    if (public_key is None) is (not certificates):
        raise UsageError("a signature is verified with a public key or with certificates", hint="name one of the two")
    verifying, manifest, path = _library().verifying, package.folder / MANIFEST, package.folder / SIGNATURE
    config = verifying.Config()
    with _usable("the public key" if public_key else "the certificate", public_key or certificates[0]):
        if public_key is not None:
            config.use_elliptic_key_verifier(public_key=public_key)
        else:
            config.use_certificate_verifier(certificate_chain=certificates)
    check_signed(package)
    problems = _problems()
    try:
        with redirect_stdout(sys.stderr):  # the library prints its warnings
            config.verify(manifest.resolve(), path.resolve())  # in the cache of the Hub they are links
    except problems as error:
        who = f"the private half of {public_key}" if public_key else f"a certificate under {', '.join(map(str, certificates))}"
        raise IntegrityError(
            f"{path} was not made with {who}: {' '.join(str(error).split()) or 'the signature is wrong'}",
            hint="whoever signed the package must give you the public key; if that is the one, trust nothing in this folder",
        ) from error
    return Signed(str(package.folder), str(path), sha256(manifest), "key" if public_key else "certificate")


def check_signed(package: Package) -> None:
    """The signature that is there is about the manifest that is there; says nothing of who made it. Needs no library.

    Raises:
        IntegrityError: there is none, it cannot be read, or it is about another manifest.
    """
    path = package.folder / SIGNATURE
    if not path.is_file():
        raise IntegrityError(
            f"{package.folder} is not signed: there is no {SIGNATURE}", hint="ask who published it, and pull it again"
        )
    try:
        envelope = json.loads(path.read_bytes())["dsseEnvelope"]
        resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
        signed = [(resource["algorithm"], resource["digest"]) for resource in resources]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged, or is no signature ({error})", hint="copy it again, or sign again") from None
    if signed != [("sha256", sha256(package.folder / MANIFEST))]:
        raise IntegrityError(
            f"{path} is not of this {MANIFEST}: one of the two was changed or replaced after signing",
            hint="copy the package again, or sign it again",
        )


def _library() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise EnvironmentProblem(
            f"signatures need the package model-signing: {error}", hint="pip install 'kdzoo[supply-chain]'"
        ) from error
    return model_signing


def _problems() -> tuple[type[Exception], ...]:
    """What `model-signing` raises of a signature that does not verify."""
    from cryptography.exceptions import InvalidSignature
    from OpenSSL.crypto import X509StoreContextError

    return (ValueError, InvalidSignature, X509StoreContextError, KeyError, IndexError, AttributeError, TypeError)


@contextmanager
def _usable(what: str, path: Path) -> Iterator[None]:
    """Raises `UsageError` where a key or certificate cannot be read."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} {error.filename or path} cannot be read: {error.strerror}", hint=NEW_KEY) from error
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{what} {path} cannot be used ({reason})", hint=f"an elliptic curve in a PEM file; {NEW_KEY}") from error
