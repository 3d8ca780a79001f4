"""make images: the gateway's image, that of its REST front, and one for each bundled driver, tagged with the version, and what they weigh.

The drivers' are those that the docker runtime makes. Nothing is built again that has not changed.

    python deploy/images/build.py [--base-image IMAGE] [NAME…]      NAME: gateway, rest, sql, onnx, …; all without one
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import docker

import onecontainer
from onecontainer.errors import DriverNotAvailable
from onecontainer.rpc.manifest import load_manifest
from onecontainer.settings import Settings
from onecontainer.sidecars.runtimes import docker_context, docker_images
from onecontainer.sidecars.runtimes.docker_context import BuildFile, Context

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = "gateway"
REST = "rest"
EXTRAS = {"", "cli", "gateway", "kafka", "postgres"}
REPOSITORY = "onecontainer"
BUILD_SECONDS = 1800.0


def gateway_context() -> Context:
    """The whole package as a wheel, with the drivers in it, and what it requires at the versions that are installed here."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        # The same wheel from the same files: its times are not the day's.
        subprocess.run(wheel, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "315532800"})
        (path,) = Path(folder).glob("*.whl")
        data = path.read_bytes()
    required = docker_context.installed_requirements("onecontainer", EXTRAS)
    return {
        docker_context.DOCKERFILE: BuildFile((ROOT / "deploy" / "images" / GATEWAY / "Dockerfile").read_bytes()),
        "requirements.txt": BuildFile("".join(f"{one}\n" for one in required).encode()),
        "constraints.txt": BuildFile("".join(f"{one}\n" for one in docker_context.versions_of(required)).encode()),
        path.name: BuildFile(data),
    }


def rest_context() -> Context:
    """The static binary, built on this host (it needs Go). Raises DriverNotAvailable."""
    command = [sys.executable, str(ROOT / "deploy" / "rest" / "build.py"), "--quick"]
    built = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        raise DriverNotAvailable("the REST front could not be built; the lines above tell why")
    program = Path(built.stdout.strip())
    return {
        docker_context.DOCKERFILE: BuildFile((ROOT / "deploy" / "images" / REST / "Dockerfile").read_bytes()),
        program.name: BuildFile(program.read_bytes(), executable=True),
    }


def recipe_of(name: str, sdk: docker_images.Recipe) -> docker_images.Recipe:
    """What an image is made of."""
    if name == GATEWAY:
        files = gateway_context()
        version = onecontainer.__version__
        tag = f"{REPOSITORY}/{GATEWAY}:{version}-{docker_context.digest_of(files, sdk.tag)}"
        return docker_images.Recipe(tag, files, sdk.tag, (f"{REPOSITORY}/{GATEWAY}:{version}",))
    if name == REST:
        files = rest_context()
        version = onecontainer.__version__
        tag = f"{REPOSITORY}/{REST}:{version}-{docker_context.digest_of(files)}"
        return docker_images.Recipe(tag, files, "scratch", (f"{REPOSITORY}/{REST}:{version}",))
    folder = ROOT / "drivers" / name
    version = load_manifest(folder).version
    made = docker_images.driver_recipe(folder, name, version, sdk)
    return docker_images.Recipe(
        made.tag, made.context, made.base, (f"{docker_images.DRIVER_REPOSITORY}{name}:{version}",)
    )


def main() -> int:
    bundled = sorted(path.parent.name for path in (ROOT / "drivers").glob("*/metadata.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-image", default=Settings().docker_base_image, help="default: %(default)s")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join([GATEWAY, REST, *bundled])}")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {GATEWAY, REST, *bundled}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join([GATEWAY, REST, *bundled])}")
    client = docker.from_env()
    sdk = docker_images.sdk_recipe(arguments.base_image)
    names = arguments.names or [GATEWAY, REST, *bundled]
    try:
        for recipe in (sdk, *(recipe_of(name, sdk) for name in names)):
            if not docker_images.has(client, recipe.tag):
                docker_images.build_image(client, recipe, lambda line: print(f"  {line}", flush=True), BUILD_SECONDS)
            image = client.images.get(recipe.tag)
            for alias in recipe.aliases:
                image.tag(alias)
            print(f"{recipe.aliases[0]:36} {image.attrs['Size'] / 1e6:7.0f} MB   {recipe.tag}", flush=True)
    except DriverNotAvailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
