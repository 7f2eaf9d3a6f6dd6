#!/bin/bash
# build.sh PROGRAM…: the programs of programs.tsv from their Go modules, at the versions it says, into $LAB/clients. One at a time, and only what isn't there at that version.
# Each is built in its own module as that has been published: with the dependencies its authors chose, not with those a consumer would get. What begins with `crates:` are crates of Rust's registry.
. "$(dirname "$0")/../../conformance/lib/env.sh"; set -euo pipefail
OUT=$LAB/clients; SOURCES=$ROOT/tests/clients/programs.tsv
mkdir -p "$OUT" "$LAB/build/clients"
command -v go >/dev/null || { echo "Go is missing: install Go 1.26 or newer (golang.org, or your distribution's package)" >&2; exit 1; }
export CGO_ENABLED=0 GOWORK=off   # a module that was published with a workspace of its repository
program() { # name module version package [our main.go, where the module has no program of its own]
  local to=$OUT/$1 mod=$LAB/build/clients/$1.mod dir left
  [ -x "$to" ] && [ "$(cat "$to.version" 2>/dev/null)" = "$2@$3" ] && { [ -z "${5:-}" ] || [ "$to" -nt "$ROOT/tests/clients/$5" ]; } && return
  left=$(df --output=avail -k "$LAB" | tail -1)
  [ "$left" -ge "${NEED:-3000000}" ] || { echo "$1: $((left / 1024)) MiB free are too few to build in" >&2; return 1; }
  printf '%s building %s %s\n' "$(date +%T)" "$1" "$3"
  dir=$(cd /; go mod download -json "$2@$3" | jq -r '.Dir // empty' || true); [ -n "$dir" ] || { echo "$1: $2@$3 isn't to be had" >&2; return 1; }
  # A folder beside it in its repository is a module of its own there, which the published one doesn't have: the version it requires takes its place, and its own where it names none.
  cp "$dir/go.mod" "$mod"; cp "$dir/go.sum" "${mod%.mod}.sum"; chmod u+w "$mod" "${mod%.mod}.sum"
  go mod edit -json "$mod" | jq -r '.Replace[]? | select(.New.Path | startswith(".")) | .Old.Path' | while read -r old; do
    go mod edit -dropreplace "$old" "$mod"; ! grep -q "$old v0.0.0-00010101000000-000000000000" "$mod" || go mod edit -require "$old@$3" "$mod"
  done
  # Put into a copy of the module as a package of it, so that it may use what is internal there.
  [ -z "${5:-}" ] || { rm -rf "${mod%.mod}"; cp -r --no-preserve=mode "$dir" "${mod%.mod}"; dir=${mod%.mod}; mkdir "$dir/$4"; cp "$ROOT/tests/clients/$5" "$dir/$4/"; }
  local how=(-p 2 -modfile "$mod" -mod=mod -trimpath -ldflags '-s -w') p
  case $4 in
  # Suites: a program a package, NAME-PACKAGE, which is run where its package's files are.
  tests:*) for p in $(tr ',' ' ' <<<"${4#tests:}"); do (cd "$dir"; nice -n 5 go test -c "${how[@]}" -o "$to-$(tr '/' '-' <<<"$p").test" "./$p"); done; : >"$to"; chmod +x "$to" ;;
  # shellcheck disable=SC2086 # tags may stand before a package
  *) (cd "$dir"; nice -n 5 go build "${how[@]}" -o "$to" $4) ;;
  esac
  echo "$2@$3" >"$to.version"; rm -rf "${mod%.mod}"
}
# Crates' own tests, a program a crate, NAME-CRATE.test, and our program NAME, whose folder is what they lie in: in one workspace, since tests of a dependency aren't built.
crates() { # name crates version folder
  local to=$OUT/$1 dir=$LAB/build/clients/$1 crate from
  [ -x "$to" ] && [ "$(cat "$to.version" 2>/dev/null)" = "$2@$3" ] && [ -z "$(find "$ROOT/tests/clients/$4" -newer "$to")" ] && return
  printf '%s building %s %s\n' "$(date +%T)" "$1" "$3"
  mkdir -p "$dir/fetch/src"; : >"$dir/fetch/src/lib.rs"
  { printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[workspace]\n[dependencies]\n'; printf '%s = "='"$3"'"\n' ${2//,/ }; } >"$dir/fetch/Cargo.toml"
  for crate in ${2//,/ }; do
    from=$(cargo metadata --format-version 1 --manifest-path "$dir/fetch/Cargo.toml" 2>/dev/null | jq -r --arg c "$crate" '.packages[] | select(.name == $c) | .manifest_path')
    rm -rf "${dir:?}/$crate"; cp -r --no-preserve=mode "$(dirname "$from")" "$dir/$crate"
    # Tests of the others use the first as well, which isn't published of them: it would be a ring.
    [ "$crate" = "${2%%,*}" ] || printf '\n[dev-dependencies.%s]\npath = "../%s"\n' "${2%%,*}" "${2%%,*}" >>"$dir/$crate/Cargo.toml"
  done
  cp "$ROOT/tests/clients/$4"/* "$dir/"; [ -e "$dir/Cargo.lock" ] || cp "$dir/${2%%,*}/Cargo.lock" "$dir/"
  (cd "$dir"; unset RUSTC_WORKSPACE_WRAPPER; export CARGO_TARGET_DIR=$dir/target RUSTFLAGS='--cap-lints warn'
   nice -n 5 cargo build -q --workspace --bin "$1"; nice -n 5 cargo test -q --workspace --lib --no-run --message-format json) >"$dir/built.json"
  for crate in ${2//,/ }; do cp "$(jq -r --arg c "${crate//-/_}" 'select(.profile.test and .target.name == $c) | .executable // empty' "$dir/built.json")" "$to-$crate.test"; done
  cp "$dir/target/debug/$1" "$to"; echo "$2@$3" >"$to.version"
}
for name in "$@"; do
  IFS=$'\t' read -r n m v p main < <(grep -P "^$name\t" "$SOURCES") || { echo "$name: not in $SOURCES" >&2; exit 1; }
  case $m in crates:*) crates "$n" "${m#crates:}" "$v" "$p" ;; *) program "$n" "$m" "$v" "$p" "$main" ;; esac
done
