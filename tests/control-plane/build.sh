#!/bin/bash
# Builds the control plane for the tests, or finds it built: tests/control-plane/build.sh [newest]
# With `newest` it is made of newest.mod: the newest Kubernetes that the Go module proxy had when that file was written.
# Prints the path of the program. It is kept outside the checkout, by a hash of everything that goes into it:
# ${XDG_CACHE_HOME:-~/.cache}/pinnace/control-plane/HASH/control-plane
set -euo pipefail
cd "$(dirname "$0")"
. ../lib.sh
case "${1:-}" in
'') modules=go ;;
newest) modules=newest ;;
*) die "usage: tests/control-plane/build.sh [newest]" ;;
esac
hash=$(cat $modules.mod $modules.sum ./*.go build.sh | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pinnace/control-plane
program=$cache/$hash/control-plane
if [ -x "$program" ]; then
	touch "$cache/$hash"
	echo "$program"
	exit
fi

find_go >&2
version=$(go list -modfile=$modules.mod -m -f '{{.Version}}' k8s.io/kubernetes)
say "building the control plane, Kubernetes $version: about ten minutes and 3 GB of Go caches the first time" >&2
started=$SECONDS
IFS=. read -r major minor _ <<<"${version#v}"
package=k8s.io/component-base/version
mkdir -p "$cache/$hash"
# kubectl and the controllers read the version that is set here. No debug data and a lazier garbage collector for the
# compiler: both save time and nothing else.
CGO_ENABLED=0 GOGC=400 go build -modfile=$modules.mod -trimpath -gcflags=all=-dwarf=false -ldflags "-s -w
	-X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor -X $package.gitTreeState=clean
	-X $package.gitCommit=none -X $package.buildDate=1970-01-01T00:00:00Z" -o "$program.new" . >&2
mv "$program.new" "$program"
# What other versions of the files gave is of no use any more, unless it is in use now: a month is long enough. A program
# that is found is touched, as it may be that of the other modules.
find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +30 ! -name "$hash" -exec rm -rf {} +
say "the control plane is built, $((SECONDS - started)) s: $program" >&2
echo "$program"
