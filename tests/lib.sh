# Shell functions that the test commands share. To be sourced.

say() { printf '[INFO]  %s\n' "$*"; }
die() { printf '[ERROR] %s\n' "$*" >&2; exit 1; }

# Under sudo, rustup stays in the home of the one who called.
find_rust() {
	local home
	for home in "$HOME" "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)" /root; do
		[ -x "$home/.cargo/bin/cargo" ] || continue
		export RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}" CARGO_HOME="${CARGO_HOME:-$home/.cargo}" PATH="$home/.cargo/bin:$PATH"
		return
	done
	command -v cargo >/dev/null || die "cargo was not found: install rustup (https://rustup.rs) first"
}

# Installs the Debian packages whose command, or file, is missing: install_packages COMMAND=PACKAGE... /FILE=PACKAGE...
install_packages() {
	local pair missing=()
	for pair in "$@"; do
		case $pair in
		/*) [ -e "${pair%%=*}" ] ;;
		*) command -v "${pair%%=*}" >/dev/null ;;
		esac || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]} (Debian packages)"
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
		die "cannot install ${missing[*]}"
}

# install_packages for daemons, which are neither started now nor at the next boot.
install_stopped() {
	local policy=/usr/sbin/policy-rc.d pair
	for pair; do command -v "${pair%%=*}" >/dev/null || break; pair=; done
	[ -n "$pair" ] || return 0
	[ -e $policy ] && policy= || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy; }
	(install_packages "$@") || { rm -f $policy; exit 1; }
	rm -f $policy
	! command -v systemctl >/dev/null || systemctl --root=/ --quiet disable frr bird 2>/dev/null || true
}

# Under sudo, what cargo wrote belongs to the one who called.
give_back() {
	[ -n "${SUDO_UID:-}" ] || return 0
	chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "${CARGO_TARGET_DIR:-target}" "${CARGO_HOME:-$HOME/.cargo}" 2>/dev/null || true
}

target=x86_64-unknown-linux-musl
# The Rust target of the static binary.
install_target() {
	rustup target list --installed | grep -qx "$target" && return
	say "installing the Rust target $target"
	rustup target add "$target" || die "cannot install the Rust target $target"
}

# The static binary that users get. Its path is in $PINNACE_BIN afterwards.
build_release() {
	install_target
	install_packages cc=gcc /usr/include/stdio.h=libc6-dev clang=clang
	say "building the static release binary"
	cargo build --locked --release --target "$target" --bin pinnace || { give_back; die "the build failed"; }
	give_back
	export PINNACE_BIN="${CARGO_TARGET_DIR:-$PWD/target}/$target/release/pinnace"
}

# A binary for the demonstration, quicker to build than that of users. Its path is in $PINNACE_BIN afterwards; one that is named there already is taken.
build_demo() {
	[ -z "${PINNACE_BIN:-}" ] || { [ -x "$PINNACE_BIN" ] || die "PINNACE_BIN=$PINNACE_BIN: there is no such program"; return 0; }
	install_target
	install_packages cc=gcc /usr/include/stdio.h=libc6-dev clang=clang
	say "building Pinnace: up to 5 minutes on 2 processors the first time, seconds later (PINNACE_BIN=/path/of/pinnace takes a built one)"
	cargo build --locked --profile demo --target "$target" --bin pinnace || { give_back; die "the build failed"; }
	give_back
	export PINNACE_BIN="${CARGO_TARGET_DIR:-$PWD/target}/$target/demo/pinnace"
}

# Any Go since 1.21 fetches by itself the version a go.mod asks for; an older one (Debian 12) is made to fetch a newer one as a module.
find_go() {
	local home minor toolchain=golang.org/toolchain@v0.0.1-go1.24.9.linux-amd64
	for home in /usr/local/go /usr/lib/go; do
		[ -x "$home/bin/go" ] && PATH="$home/bin:$PATH"
	done
	install_packages go=golang-go
	minor=$(go version | sed -E 's/.* go1\.([0-9]+).*/\1/')
	[ "$minor" -lt 21 ] || return 0
	say "Go 1.$minor is too old: fetching a newer one"
	home=$(cd / && go mod download -json "$toolchain" | sed -nE 's/^\s*"Dir": "(.*)",?$/\1/p')
	[ -n "$home" ] || die "cannot fetch Go: install 1.24 or newer from https://go.dev/dl"
	chmod -R +x "$home/bin" "$home/pkg/tool"
	PATH="$home/bin:$PATH"
}

# The counts of a whole run: `check` and `cargo_tests` add to them, `summary` prints them.
passed=0 failed=0
# check NAME COMMAND...: one test that is a command
check() {
	local name=$1 start=$SECONDS; shift
	say "$name"
	if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); printf '[ERROR] %s failed\n' "$name" >&2; fi
	say "$name: $((SECONDS - start)) s"
}
# cargo_tests ARGS...: a run of cargo test; its counts are added up. Tests that this kernel cannot run are listed with the reason.
cargo_tests() {
	local log code=0 line
	log=$(mktemp)
	# Braces, as `|| true` at the end would overwrite PIPESTATUS.
	cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log" | { grep -vE '^test .* \.\.\. ok$|^$' || true; }
	code=${PIPESTATUS[0]}
	while read -r line; do
		passed=$((passed + $(sed -E 's/.* ([0-9]+) passed.*/\1/' <<<"$line")))
		failed=$((failed + $(sed -E 's/.* ([0-9]+) failed.*/\1/' <<<"$line")))
	done < <(grep '^test result:' "$log")
	[ "$code" = 0 ] || grep -q '^test result: FAILED' "$log" || failed=$((failed + 1))
	rm -f "$log"
}
# Prints the counts; fails when something failed.
summary() {
	printf '%s passed, %s failed\n' "$passed" "$failed"
	[ "$failed" = 0 ]
}

# cargo-deny, which judges the licences and the sources of the dependencies. Built once, outside the checkout.
install_deny() {
	cargo deny --version >/dev/null 2>&1 && return
	say "installing cargo-deny: several minutes, once"
	CARGO_TARGET_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/pinnace/cargo-deny" cargo install --locked --quiet cargo-deny || die "cannot install cargo-deny"
	rm -rf "${XDG_CACHE_HOME:-$HOME/.cache}/pinnace/cargo-deny"
}

# The control plane for tests with a cluster; with `newest`, of the newest Kubernetes. Its path is in $PINNACE_CONTROL_PLANE afterwards.
build_control_plane() {
	PINNACE_CONTROL_PLANE=$(tests/control-plane/build.sh "$@") || die "the control plane could not be built"
	export PINNACE_CONTROL_PLANE
}
