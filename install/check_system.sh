#!/bin/sh
# Says what this machine lacks before anything is built.
#
#   install/check_system.sh             exit 0 where nothing is missing; else name each and the apt-get command, and exit 2
#   install/check_system.sh --packages  print the missing Debian packages on one line, nothing else
#   install/check_system.sh --python    print the Python that the environment is made with
#
# PYTHON names the Python to use; without it, the first of those below whose version TensorFlow 2.21 has wheels for.
# openssh-client is not asked for: horovodrun calls ssh only for other machines.

set -u

python_version() { # prints 3.11 and the like where $1 is a Python that runs
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

is_supported() {
    case $1 in 3.11 | 3.12 | 3.13) return 0 ;; *) return 1 ;; esac
}

can_make_environments() { # Debian keeps ensurepip, which venv needs, in a package of its own
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

find_python() { # prints the best Python: one that is ready before one that lacks venv
    without_venv=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        is_supported "$(python_version "$candidate")" || continue
        if can_make_environments "$candidate"; then
            echo "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    echo "$without_venv"
}

missing=
packages=
lacks() { # $1: what is missing and what for; $2: the packages that have it
    missing="$missing  $1
"
    packages="$packages${packages:+ }$2"
}

check_python() {
    python=$(find_python)
    if [ -n "$python" ]; then
        version=$(python_version "$python")
        can_make_environments "$python" || lacks "the module venv of Python $version ($python)" "python$version-venv"
    elif [ -n "${PYTHON:-}" ]; then
        version=$(python_version "$PYTHON")
        lacks "Python 3.11, 3.12 or 3.13: PYTHON=$PYTHON is ${version:-not a Python that runs}; name another or none" ""
    else
        version=$(python_version python3)
        lacks "Python 3.11, 3.12 or 3.13: python3 is ${version:-not installed}" "$(python_packages)"
    fi
}

python_packages() { # the newest supported Python that apt offers
    for version in 3.13 3.12 3.11; do
        if [ -n "$(apt-cache policy "python$version-venv" 2>/dev/null | grep 'Candidate: [0-9]')" ]; then
            echo "python$version python$version-venv"
            return
        fi
    done
    echo "python3 python3-venv"
}

check_compiler() {
    compiler=${CXX:-g++}
    if ! command -v "$compiler" >/dev/null; then
        lacks "a C++17 compiler ($compiler), which builds Horovod" g++
    elif ! printf '#include <optional>\nstd::optional<int> x;\n' | "$compiler" -std=c++17 -fsyntax-only -x c++ - 2>/dev/null; then
        lacks "a compiler that takes C++17 ($compiler does not), which builds Horovod" g++
    fi
}

check_program() { # $1: the program, and the package of that name; $2: what for
    command -v "$1" >/dev/null || lacks "$1, $2" "$1"
}

check_python
check_compiler
check_program cmake "which builds Horovod"
check_program make "which runs this project's targets and builds Horovod"

case ${1:-} in
    --packages) echo "$packages" ;;
    --python) echo "$python" ;;
    *)
        [ -z "$missing" ] && exit 0
        {
            echo "This machine lacks:"
            printf '%s' "$missing"
            if [ -n "$packages" ]; then
                sudo=$([ "$(id -u)" = 0 ] || echo 'sudo ')
                echo "Install it with:"
                echo "  ${sudo}apt-get update && ${sudo}apt-get install --yes --no-install-recommends $packages"
            fi
        } >&2
        exit 2
        ;;
esac
