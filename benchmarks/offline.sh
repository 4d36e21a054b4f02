#!/usr/bin/env bash
# Packages for a GPU machine without a network that has Python 3.12, torch 2.11 and Triton 3.6, in pieces that fit
# through a narrow gate.
#
#   benchmarks/offline.sh make OUT           on a machine with a network: OUT/site.tgz.1-of-4 ... of at most 52 MiB each
#   benchmarks/offline.sh join PIECE SITE    there, once for each piece in their order; the last unpacks them into SITE
#   PYTHONPATH=SITE python3 -m benchmarks day --data ...
#
# Left out: torch, torchvision, Triton and what came with them; DALI's and nvImageCodec's modules for other Pythons; the
# codecs of TIFF, JPEG 2000 and nvCOMP, which JPEGs do not need.
set -euo pipefail
VERSION=${VERSION:-3.12}            # of the Python there
DALI=${DALI:-nvidia-dali-cuda130==2.4.0 nvidia-nvimgcodec-cu13==0.9.* nvidia-nvjpeg==13.*}   # of the CUDA there
PIECE_MIB=52
# What deit_fast needs beside them and an image with torch, timm's friends and pytest lacks.
OTHERS="nvtx makefun libcst optree gast astunparse six packaging timm pydantic pydantic-core annotated-types
        typing-inspection typing-extensions torchx docstring-parser pyre-extensions importlib-metadata lazy-importer
        tabulate docker"

make_pieces() {
    local out=$1 tag=${VERSION//./} work platforms=() n
    [ ! -e "$out" ] || [ -z "$(ls -A "$out")" ] || { echo "offline.sh: $out: expected an empty folder" >&2; exit 2; }
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    for n in 39 34 31 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$VERSION" \
        --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
        --dest "$work/wheels" $DALI $OTHERS
    mkdir -p "$work/site" "$out"
    for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$work/site"; done
    rm -rf "$work/wheels"
    find "$work/site" -name '*.cpython-*.so' ! -name "*.cpython-$tag-*" -delete
    find "$work/site/nvidia/nvimgcodec/extensions" \( -name '*opencv*' -o -name '*nvjpeg2k*' -o -name '*nvtiff*' \) -delete
    tar -C "$work/site" -czf "$work/site.tgz" .
    split --bytes="${PIECE_MIB}M" --numeric-suffixes=1 --suffix-length=1 "$work/site.tgz" "$out/site.tgz."
    n=$(ls "$out" | wc -l)
    for piece in "$out"/site.tgz.?; do mv "$piece" "$piece-of-$n"; done
    sha256sum <"$work/site.tgz" | cut -d' ' -f1 >"$out/site.tgz.sha256"
    ls -l "$out"
    echo "once for each, in order, the sum beside it: benchmarks/offline.sh join PIECE SITE"
}

join_pieces() {
    local piece=$1 site=$2 name number of expected
    name=${piece##*/site.tgz.} number=${name%-of-*} of=${name##*-of-}
    [[ $name =~ ^[1-9]-of-[1-9]$ ]] || { echo "offline.sh: $piece: expected site.tgz.N-of-M" >&2; exit 2; }
    mkdir -p "$site"
    if [ "$number" = 1 ]; then : >"$site/.joined"; echo 0 >"$site/.pieces"; fi
    expected=$(($(cat "$site/.pieces" 2>/dev/null || echo 0) + 1))
    [ "$number" = "$expected" ] || { echo "offline.sh: $piece: expected piece $expected next in $site" >&2; exit 2; }
    cat "$piece" >>"$site/.joined"
    echo "$number" >"$site/.pieces"
    [ "$number" = "$of" ] || { echo "$number of $of pieces are in $site"; return; }
    if [ -e "${piece%/*}/site.tgz.sha256" ]; then
        [ "$(sha256sum <"$site/.joined" | cut -d' ' -f1)" = "$(cat "${piece%/*}/site.tgz.sha256")" ] ||
            { echo "offline.sh: $site: expected the sum in site.tgz.sha256, the pieces are damaged" >&2; exit 2; }
    fi
    tar -C "$site" -xzf "$site/.joined"
    rm -f "$site/.joined" "$site/.pieces"
    echo "PYTHONPATH=$site python3 ..."
}

case "${1:-}:$#" in
    make:2) make_pieces "$2" ;;
    join:3) join_pieces "$2" "$3" ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
