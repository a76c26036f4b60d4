#!/usr/bin/env bash
# Makes DIR, in which arm64 Python runs under user-mode emulation: DIR/root (Debian's Python 3.11
# and its libraries), DIR/site (the device profile and pytest, as PyPI has them for aarch64) and
# DIR/python, which starts it; EDGEID_ARM_CPU names the processor, cortex-a72 unless told.
#
#     tests/arm64/root.sh DIR
#
# Needs Debian 12 or later on any machine with qemu-user-static; no root rights, chroot or binfmt.
set -euo pipefail
cd "$(dirname "$0")/../.."
project=$PWD
host_python=$(command -v "${PYTHON:-python3}")
mkdir -p "$1"
cd "$1"
folder=$PWD

packages="libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libssl3 libffi8 libsqlite3-0
  libbz2-1.0 liblzma5 libuuid1 libdb5.3 libreadline8 libncursesw6 libtinfo6 libnsl2 libtirpc3
  libcrypt1 libsndfile1 libflac12 libogg0 libopus0 libvorbis0a libvorbisenc2 libmpg123-0
  libmp3lame0 python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib
  libpython3.11-dev"

unpack_debian() {  # an apt of its own, so that the machine's architectures stay as they are
  mkdir -p debs root/proc apt/lists/partial apt/cache/archives/partial
  printf '%s\n' 'APT::Architecture "arm64";' 'APT::Architectures {"arm64";};' \
    "Dir::State \"$folder/apt\";" "Dir::State::status \"$folder/apt/status\";" \
    "Dir::Cache \"$folder/apt/cache\";" 'APT::Sandbox::User "root";' > apt/conf
  : > apt/status
  export APT_CONFIG=$folder/apt/conf
  apt-get -qq update
  # shellcheck disable=SC2086  # one word a package
  (cd debs && apt-get -qq download $packages)
  for deb in debs/*.deb; do dpkg -x "$deb" root; done
  # onnxruntime reads /proc/cpuinfo, and would see the host's
  for core in 0 1; do
    printf '%s\n' "processor	: $core" 'BogoMIPS	: 108.00' \
      'Features	: fp asimd evtstrm crc32 cpuid' 'CPU implementer	: 0x41' \
      'CPU architecture: 8' 'CPU variant	: 0x0' 'CPU part	: 0xd08' 'CPU revision	: 3' ''
  done > root/proc/cpuinfo
}

requirements() {  # what pyproject.toml asks for on a device, and what runs the tests
  "$host_python" - "$project/pyproject.toml" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
runners = [need for need in extras["test"] if need.startswith(("pytest", "hypothesis"))]
print(*project["dependencies"], *extras["onnxruntime"], *runners, sep="\n")
PYTHON
}

install_site() {
  rm -rf site
  "$host_python" -m pip install --quiet --disable-pip-version-check --target site \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --implementation cp --python-version 311 --only-binary=:all: \
    --constraint "$project/constraints.txt" --requirement "$1"
}

[ -e debian.done ] || { unpack_debian && touch debian.done; }
requirements > wanted.txt
if ! cmp -s wanted.txt installed.txt; then
  rm -f installed.txt
  install_site wanted.txt
  mv wanted.txt installed.txt
fi

cat > python <<EOF2
#!/bin/sh
export PYTHONPATH="$folder/site\${PYTHONPATH:+:\$PYTHONPATH}" PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1
exec qemu-aarch64-static -cpu "\${EDGEID_ARM_CPU:-cortex-a72}" -L "$folder/root" \\
  "$folder/root/usr/bin/python3.11" "\$@"
EOF2
chmod +x python
./python -c 'import platform, numpy; print("ready:", platform.machine(), "numpy", numpy.__version__)'
