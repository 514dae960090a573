"""API of the stand-in GitLab: who is who, keys and tokens, variables, packages."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

from glgpu.rehearsal import gitlab_entities as show
from glgpu.rehearsal.gitlab_http import Answer, ApiError, Call, not_found, serves
from glgpu.rehearsal.gitlab_model import (
    DeployKey,
    DeployToken,
    Package,
    PackageFile,
    Role,
    Token,
    Variable,
    secret,
)

TOKEN_SCOPES = frozenset(
    {"api", "read_api", "read_repository", "write_repository", "read_registry", "write_registry", "create_runner",
     "manage_runner", "ai_features", "k8s_proxy", "self_rotate"}
)  # fmt: skip
DEPLOY_TOKEN_SCOPES = frozenset(
    {"read_repository", "read_registry", "write_registry", "read_package_registry", "write_package_registry"}
)
PACKAGE_NAME = re.compile(r"[A-Za-z0-9._\-+]+")
PACKAGE_VERSION = re.compile(r"(?!.*\.\.)[\w+.\-]+")
FILE_NAME = re.compile(r"(?![~@])[A-Za-z0-9._\-+~@]+(?<![~@])")
"""Name patterns as the description of the generic package operations has them."""


@serves("GET /version", "version.get")
async def version(call: Call) -> Answer:
    """The GitLab version."""
    return Answer(200, {"version": call.host.version, "revision": "stand-in"})


@serves("GET /user", "user.get")
async def current_user(call: Call) -> Answer:
    """Whose token this is."""
    user = call.user
    extra = {"created_at": None, "bot": user.bot, "email": f"{user.username}@example.com", "external": False}
    return Answer(200, show.user_basic(call.host, user) | extra)


@serves("GET /personal_access_tokens/self", "access_tokens.self")
async def current_token(call: Call) -> Answer:
    """The token of the request."""
    if call.token is None:
        raise not_found("Personal access token")
    return Answer(200, show.personal_token(call.token, call.state.clock.now()))


@serves("GET /projects/{id}", "projects.get", Role.GUEST, open_get=True)
async def project(call: Call) -> Answer:
    """A project."""
    return Answer(200, show.project(call.host, call.project, call.user))


@serves("GET /projects/{id}/members/all", "members.list", Role.GUEST)
async def members(call: Call) -> Answer:
    """The project's members."""
    users = [call.state.users[number] for number in call.project.members]
    wanted = (call.params.get("query") or "").lower()
    return call.page(
        [user for user in users if wanted in user.username.lower() or wanted in user.name.lower()],
        lambda user: show.member(call.host, call.project, user),
    )


@serves("GET /projects/{id}/members/all/{user_id}", "members.get", Role.GUEST)
async def member(call: Call) -> Answer:
    """One member."""
    if call.number("user_id") not in call.project.members:
        raise not_found()
    return Answer(200, show.member(call.host, call.project, call.state.users[call.number("user_id")]))


@serves("GET /projects/{id}/protected_branches", "protected_branches.list", Role.DEVELOPER)
async def protected_branches(call: Call) -> Answer:
    """Which branches are protected."""
    return call.page(list(enumerate(call.project.protected_branches, 1)), lambda it: show.protected_branch(*it))


# Deploy keys (lib/api/deploy_keys.rb): Maintainer, and never a job token


def _keys(call: Call) -> list[DeployKey]:
    return [key for key in call.state.deploy_keys.values() if call.project.id in key.projects]


def _key(call: Call) -> DeployKey:
    for key in _keys(call):
        if key.id == call.number("key_id"):
            return key
    raise not_found()


@serves("GET /projects/{id}/deploy_keys", "deploy_keys.list", Role.MAINTAINER)
async def deploy_keys(call: Call) -> Answer:
    """All keys, expired ones too."""
    return call.page(_keys(call), lambda key: show.deploy_key(key, call.project.id))


@serves("GET /projects/{id}/deploy_keys/{key_id}", "deploy_keys.get", Role.MAINTAINER)
async def deploy_key(call: Call) -> Answer:
    """One key."""
    return Answer(200, show.deploy_key(_key(call), call.project.id))


def _is_public_key(text: str) -> bool:
    parts = text.split()
    if len(parts) < 2:
        return False
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except binascii.Error:
        return False
    return blob[4:].startswith(parts[0].encode()) and int.from_bytes(blob[:4], "big") == len(parts[0])


@serves("POST /projects/{id}/deploy_keys", "deploy_keys.create", Role.MAINTAINER)
async def create_deploy_key(call: Call) -> Answer:
    """Add a key: the very same text again gives what is there, the same key with another comment is refused."""
    text = call.params["key"].strip()
    can_push = bool(call.params.get("can_push"))
    if not _is_public_key(text):
        errors = {"deploy_key.key": ["is invalid"], "deploy_key.fingerprint_sha256": ["cannot be generated"]}
        raise ApiError.message(400, errors)
    for key in call.state.deploy_keys.values():
        if key.blob != text.split()[1]:
            continue
        accessible = any(call.state.projects[number].role(call.user) >= Role.GUEST for number in key.projects)
        if key.key != text or not accessible:
            raise ApiError.message(400, {"deploy_key.fingerprint_sha256": ["has already been taken"]})
        key.projects.setdefault(call.project.id, can_push)
        return Answer(201, show.deploy_key(key, call.project.id))
    if not call.params["title"].strip():
        raise ApiError.message(400, {"deploy_key.title": ["can't be blank"]})
    now, expires_at = call.state.clock.now(), call.params.get("expires_at")
    if expires_at is not None and expires_at <= now:
        raise ApiError.message(400, {"deploy_key.key": ["has expired"]})
    projects = {call.project.id: can_push}
    key = DeployKey(call.state.number(), call.params["title"], text, now, call.user, projects, expires_at)
    call.state.deploy_keys[key.id] = key
    return Answer(201, show.deploy_key(key, call.project.id))


@serves("PUT /projects/{id}/deploy_keys/{key_id}", "deploy_keys.update", Role.MAINTAINER)
async def update_deploy_key(call: Call) -> Answer:
    """Change title or write access."""
    if not call.params:
        raise ApiError(400, {"error": "title, can_push are missing, at least one parameter must be provided"})
    key = _key(call)
    key.title = call.params.get("title", key.title)
    key.projects[call.project.id] = call.params.get("can_push", key.projects[call.project.id])
    return Answer(200, show.deploy_key(key, call.project.id))


@serves("POST /projects/{id}/deploy_keys/{key_id}/enable", "deploy_keys.enable", Role.MAINTAINER)
async def enable_deploy_key(call: Call) -> Answer:
    """Let a key of another project of the caller's open this one too, for reading."""
    key = call.state.deploy_keys.get(call.number("key_id"))
    if key is None or not any(call.state.projects[number].role(call.user) >= Role.GUEST for number in key.projects):
        raise not_found("Deploy key")
    key.projects.setdefault(call.project.id, False)
    return Answer(201, show.deploy_key(key, call.project.id))


@serves("DELETE /projects/{id}/deploy_keys/{key_id}", "deploy_keys.delete", Role.MAINTAINER)
async def delete_deploy_key(call: Call) -> Answer:
    """Take a key from the project; the last project's is gone for good."""
    key = call.state.deploy_keys.get(call.number("key_id"))
    if key is None or call.project.id not in key.projects:
        raise not_found("Deploy key")
    del key.projects[call.project.id]
    if not key.projects:
        del call.state.deploy_keys[key.id]
    return Answer(204)


# Deploy tokens and project access tokens


@serves("GET /projects/{id}/deploy_tokens", "deploy_tokens.list", Role.MAINTAINER)
async def deploy_tokens(call: Call) -> Answer:
    """Deploy tokens; with ``active`` only living ones."""
    now = call.state.clock.now()
    tokens = [
        token
        for token in call.project.deploy_tokens.values()
        if not call.params.get("active") or not (token.revoked or token.expired(now))
    ]
    return call.page(tokens, lambda token: show.deploy_token(token, now))


def _scopes(call: Call, allowed: frozenset[str]) -> tuple[str, ...]:
    scopes = tuple(call.params["scopes"])
    if not scopes or not set(scopes) <= allowed:
        raise ApiError(400, {"error": "scopes does not have a valid value"})
    return scopes


@serves("POST /projects/{id}/deploy_tokens", "deploy_tokens.create", Role.MAINTAINER)
async def create_deploy_token(call: Call) -> Answer:
    """Add a deploy token; its secret is shown this once."""
    scopes = _scopes(call, DEPLOY_TOKEN_SCOPES)
    number = call.state.number()
    username = call.params.get("username") or f"gitlab+deploy-token-{number}"
    token = DeployToken(number, call.params["name"], username, scopes, secret("gldt-"), call.params.get("expires_at"))
    call.project.deploy_tokens[number] = token
    return Answer(201, show.deploy_token(token, call.state.clock.now()) | {"token": token.value})


def _deploy_token(call: Call) -> DeployToken:
    token = call.project.deploy_tokens.get(call.number("token_id"))
    if token is None:
        raise not_found("Deploy Token")
    return token


@serves("GET /projects/{id}/deploy_tokens/{token_id}", "deploy_tokens.get", Role.MAINTAINER)
async def deploy_token(call: Call) -> Answer:
    """One deploy token."""
    return Answer(200, show.deploy_token(_deploy_token(call), call.state.clock.now()))


@serves("DELETE /projects/{id}/deploy_tokens/{token_id}", "deploy_tokens.delete", Role.MAINTAINER)
async def delete_deploy_token(call: Call) -> Answer:
    """Remove a deploy token."""
    del call.project.deploy_tokens[_deploy_token(call).id]
    return Answer(204)


def _tokens(call: Call) -> list[Token]:
    return [token for token in call.state.tokens if token.project_id == call.project.id]


@serves("GET /projects/{id}/access_tokens", "access_tokens.list", Role.MAINTAINER)
async def access_tokens(call: Call) -> Answer:
    """Project access tokens, dead ones too unless ``state`` says otherwise."""
    now = call.state.clock.now()
    wanted = call.params.get("state")
    tokens = []
    for token in _tokens(call):
        active = not token.revoked and not token.expired(now)
        if wanted is None or (wanted == "active") == active:
            tokens.append(token)
    return call.page(tokens, lambda token: show.project_token(token, now))


@serves("POST /projects/{id}/access_tokens", "access_tokens.create", Role.MAINTAINER)
async def create_access_token(call: Call) -> Answer:
    """Add a project access token, at most of the caller's own role; its secret is shown this once."""
    scopes = _scopes(call, TOKEN_SCOPES)
    level = call.params.get("access_level") or int(Role.MAINTAINER)
    if level not in set(Role) - {Role.NONE}:
        raise ApiError(400, {"error": "access_level does not have a valid value"})
    if level > call.project.role(call.user):
        raise ApiError.message(
            400,
            "400 Bad request - Access level of the token can't be greater the access level of the user "
            "who created the token",
        )
    token = call.state.create_project_token(
        call.project, call.params["name"], scopes, Role(level), expires_at=call.params.get("expires_at")
    )
    return Answer(201, show.project_token(token, call.state.clock.now()) | {"token": token.value})


def _token(call: Call) -> Token:
    for token in _tokens(call):
        if token.id == call.number("token_id"):
            return token
    raise not_found()


@serves("GET /projects/{id}/access_tokens/{token_id}", "access_tokens.get", Role.MAINTAINER)
async def access_token(call: Call) -> Answer:
    """One project access token."""
    return Answer(200, show.project_token(_token(call), call.state.clock.now()))


@serves("DELETE /projects/{id}/access_tokens/{token_id}", "access_tokens.delete", Role.MAINTAINER)
async def revoke_access_token(call: Call) -> Answer:
    """Revoke a project access token: it stays listed, dead, and its bot is no member any more."""
    token = _token(call)
    token.revoked = True
    call.project.members.pop(token.user.id, None)
    return Answer(204)


# Variables


def _variable(call: Call) -> Variable:
    scope = call.params.get("filter[environment_scope]")
    found = [v for v in call.project.variables if v.key == call.path["key"] and scope in (None, v.environment_scope)]
    if not found:
        raise not_found("Variable")
    if len(found) > 1:
        raise ApiError.message(
            409, "There are multiple variables with provided parameters. Please use 'filter[environment_scope]'"
        )
    return found[0]


def _change(variable: Variable, params: dict[str, Any]) -> None:
    for name in ("value", "variable_type", "protected", "masked", "raw", "environment_scope", "description"):
        if params.get(name) is not None:
            setattr(variable, name, params[name])
    if variable.masked and not re.fullmatch(r"[^\s]{8,}", variable.value):
        raise ApiError.message(400, {"value": ["is invalid"]})


@serves("GET /projects/{id}/variables", "variables.list", Role.MAINTAINER)
async def variables(call: Call) -> Answer:
    """The project's variables."""
    return call.page(call.project.variables, show.variable)


@serves("POST /projects/{id}/variables", "variables.create", Role.MAINTAINER)
async def create_variable(call: Call) -> Answer:
    """Add a variable; key and scope together are unique. A masked value has 8 characters or more and no blanks."""
    if not re.fullmatch(r"[A-Za-z0-9_]{1,255}", call.params["key"]):
        text = "can contain only letters, digits and '_'."
        raise ApiError.message(400, {"key": [text]})
    hidden = bool(call.params.get("masked_and_hidden"))
    variable = Variable(call.params["key"], call.params["value"], hidden=hidden, masked=hidden)
    _change(variable, call.params)
    if any((v.key, v.environment_scope) == (variable.key, variable.environment_scope) for v in call.project.variables):
        raise ApiError.message(400, {"key": [f"({variable.key}) has already been taken"]})
    call.project.variables.append(variable)
    return Answer(201, show.variable(variable))


@serves("GET /projects/{id}/variables/{key}", "variables.get", Role.MAINTAINER)
async def variable(call: Call) -> Answer:
    """One variable."""
    return Answer(200, show.variable(_variable(call)))


@serves("PUT /projects/{id}/variables/{key}", "variables.update", Role.MAINTAINER)
async def update_variable(call: Call) -> Answer:
    """Change a variable."""
    found = _variable(call)
    _change(found, call.params)
    return Answer(200, show.variable(found))


@serves("DELETE /projects/{id}/variables/{key}", "variables.delete", Role.MAINTAINER)
async def delete_variable(call: Call) -> Answer:
    """Remove a variable."""
    call.project.variables.remove(_variable(call))
    return Answer(204)


# Packages: job tokens come in


def _package(call: Call) -> Package:
    package = call.project.packages.get(call.number("package_id"))
    if package is None:
        raise not_found()
    return package


@serves("GET /projects/{id}/packages", "packages.list", Role.REPORTER, job_token="header")
async def packages(call: Call) -> Answer:
    """Packages, by part of the name, type and version."""
    found = [
        package
        for package in call.project.packages.values()
        if (call.params.get("package_name") or "") in package.name
        and call.params.get("package_type") in (None, "generic")
        and call.params.get("package_version") in (None, package.version)
    ]
    order = call.params.get("order_by") or "created_at"
    found.sort(key=lambda p: {"name": p.name, "version": p.version}.get(order, f"{p.id:020}"))
    if call.params.get("sort") == "desc":
        found.reverse()
    return call.page(found, lambda package: show.package(package, call.project))


@serves("GET /projects/{id}/packages/{package_id}", "packages.get", Role.REPORTER, job_token="header")
async def package(call: Call) -> Answer:
    """One package."""
    return Answer(200, show.package(_package(call), call.project))


@serves("DELETE /projects/{id}/packages/{package_id}", "packages.delete", Role.MAINTAINER, job_token="header")
async def delete_package(call: Call) -> Answer:
    """Remove a package and its files."""
    found = call.project.packages.pop(_package(call).id)
    for file in found.files:
        file.path.unlink(missing_ok=True)
    return Answer(204)


@serves("GET /projects/{id}/packages/{package_id}/package_files", "packages.files", Role.REPORTER, job_token="header")
async def package_files(call: Call) -> Answer:
    """The files of a package."""
    found = _package(call)
    return call.page(found.files, lambda file: show.package_file(file, found.id))


@serves(
    "DELETE /projects/{id}/packages/{package_id}/package_files/{package_file_id}", "packages.delete_file",
    Role.MAINTAINER, job_token="header",
)  # fmt: skip
async def delete_package_file(call: Call) -> Answer:
    """Remove one file; a package without files stays."""
    found = _package(call)
    for file in found.files:
        if file.id == call.number("package_file_id"):
            found.files.remove(file)
            file.path.unlink(missing_ok=True)
            return Answer(204)
    raise not_found()


GENERIC = "/projects/{id}/packages/generic/{package_name}/{package_version}/{file_name}"


@serves(
    f"PUT {GENERIC}", "packages.upload", Role.DEVELOPER, job_token="header", stream=True,
    deploy_scopes=("write_package_registry",),
)  # fmt: skip
async def upload_package_file(call: Call) -> Answer:
    """Save a file; a file of the same name is kept beside it, and the newer one is what is downloaded."""
    name, version, file_name = (call.path[part] for part in ("package_name", "package_version", "file_name"))
    for part, text, pattern in (
        ("package_name", name, PACKAGE_NAME),
        ("package_version", version, PACKAGE_VERSION),
        ("file_name", file_name.rpartition("/")[2], FILE_NAME),
    ):
        if not pattern.fullmatch(text):
            raise ApiError(400, {"error": f"{part} is invalid"})
    number, digest, size = call.state.number(), hashlib.sha256(), 0
    path = call.state.folder / "packages" / str(number)
    limit = call.state.package_limit
    with path.open("wb") as target:
        async for chunk in call.request.content.iter_chunked(1 << 18):
            digest.update(chunk)
            size += len(chunk)
            if size > limit:
                # Workhorse's, which stops listening there.
                text = f"RequestBody: upload failed: the upload size {size} is over maximum of {limit} bytes"
                raise ApiError.message(413, f"{text}: entity is too large")
            target.write(chunk)
    now = call.state.clock.now()
    holder = next((p for p in call.project.packages.values() if (p.name, p.version) == (name, version)), None)
    if holder is None:
        holder = Package(call.state.number(), name, version, now, call.caller)
        call.project.packages[holder.id] = holder
    file = PackageFile(number, file_name, path, size, digest.hexdigest(), now)
    holder.files.append(file)
    if call.params.get("select") == "package_file":
        return Answer(200, show.package_file(file, holder.id))
    return Answer(201, {"message": "201 Created"})


@serves(
    f"GET {GENERIC}", "packages.download", Role.REPORTER, job_token="header",
    deploy_scopes=("read_package_registry", "write_package_registry"),
)  # fmt: skip
async def download_package_file(call: Call) -> Answer:
    """The newest file of that name."""
    wanted = (call.path["package_name"], call.path["package_version"])
    for holder in call.project.packages.values():
        if (holder.name, holder.version) == wanted:
            for file in reversed(holder.files):
                if file.name == call.path["file_name"]:
                    return call.file(file.path)
    raise not_found()
