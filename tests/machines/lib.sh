# Shell functions that make and run virtual machines out of Debian packages. To be sourced, after tests/lib.sh.
# Everything that can be made again is kept in $cache: packages lists, kernels, the root file system.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pinnace/kernels
machines=$PWD/tests/machines

# The archive this machine takes Debian from, as its own sources name it.
debian_mirror() {
	[ -n "${mirror:-}" ] && return
	mirror=$(apt-get indextargets --format '$(REPO_URI)|$(LABEL)|$(COMPONENT)|$(CREATED_BY)' | awk -F'|' '$2 == "Debian" && $3 == "main" && $4 == "Packages" { print $1; exit }')
	[ -n "$mirror" ] || die "apt of this machine knows no Debian archive (apt-get update?)"
}

# suite_apt SUITE PROGRAM ARGS...: apt-get or apt-cache on the packages of another release, without touching this machine's sources
suite_apt() {
	local suite=$1 program=$2 home=$cache/$1/apt; shift 2
	local options=(-o "Dir::Etc::sourcelist=$home/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$home/lists" -o "Dir::Cache=$home/cache"
		-o Acquire::Languages=none -o APT::Sandbox::User=root)
	if [ ! -e "$home/updated" ]; then
		debian_mirror
		mkdir -p "$home/lists/partial" "$home/cache/archives/partial"
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$home/sources.list"
		apt-get "${options[@]}" update -qq && touch "$home/updated" || die "the package lists of Debian $suite cannot be fetched"
	fi
	"$program" "${options[@]}" "$@"
}

# make_kernel SUITE: vmlinuz, initrd and modules.ext4 of a release's cloud kernel in $cache/SUITE/kernel
make_kernel() {
	local suite=$1 home=$cache/$1 image work module version
	[ -e "$home/kernel/modules.ext4" ] && return
	say "fetching the kernel of Debian $suite"
	image=$(suite_apt "$suite" apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
	[ -n "$image" ] || die "Debian $suite has no cloud kernel"
	rm -rf "$home/work" "$home/kernel"; work=$home/work; mkdir -p "$work/root" "$work/initrd"/{bin,proc,sys,dev,root,lib/modules}
	# Newer packages keep the image and the modules in packages of their own.
	(cd "$work" && suite_apt "$suite" apt-get -q download "$image" \
		$(suite_apt "$suite" apt-cache depends "$image" | sed -n 's/^ *Depends: \(linux-\(base\|binary\|modules\)-[0-9].*\)/\1/p') >/dev/null) || die "no kernel of Debian $suite"
	for module in "$work"/*.deb; do dpkg-deb -x "$module" "$work/root"; done
	[ -d "$work/root/lib" ] || ln -s usr/lib "$work/root/lib"
	version=$(ls "$work/root/lib/modules")
	find "$work/root/lib/modules/" \( -name '*.ko.xz' -exec xz -d {} + \) -o \( -name '*.ko.zst' -exec zstd -dq --rm {} + \)
	depmod -b "$work/root" "$version"
	cp "$(ls -d "$work"/root/boot/vmlinuz-* "$work/root/lib/modules/$version/vmlinuz" 2>/dev/null | head -n 1)" "$work/vmlinuz" || die "no kernel in $image"
	cp "$machines/init" "$work/initrd/init"; cp /bin/busybox "$work/initrd/bin/"
	for module in sh mount insmod switch_root sleep poweroff; do ln -s busybox "$work/initrd/bin/$module"; done
	# What is built in has no file.
	for module in virtio_pci virtio_blk ext4; do modprobe -d "$work/root" -S "$version" --show-depends "$module" 2>/dev/null || true; done |
		awk '/^insmod/ && !seen[$2]++ { print $2 }' | while read -r module; do
		cp "$module" "$work/initrd/lib/modules/"; echo "${module##*/}"
	done > "$work/initrd/modules"
	(cd "$work/initrd" && find . | cpio -o -H newc --quiet) > "$work/initrd.cpio"
	disk "$work/root/lib/modules" "$work/modules.ext4"
	mkdir "$work/kernel"; mv "$work"/{vmlinuz,initrd.cpio,modules.ext4} "$work/kernel/"
	mv "$work/kernel" "$home/kernel"; rm -rf "$work"
}

# The root file system of all machines: Debian bookworm with the programs the tests call. netbase is there for the names of protocols.
packages=iproute2,nftables,conntrack,curl,socat,procps,kmod,netbase
root_image=$cache/root-$(md5sum <<<"$packages" | cut -c1-8).ext4
make_root() {
	local root=$cache/root.work
	[ -e "$root_image" ] && return
	say "making the root file system of the machines"
	debian_mirror; mkdir -p "$cache"; rm -rf "$root"
	mmdebstrap --quiet --mode=root --variant=minbase --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--include="$packages" bookworm "$root" "deb $mirror bookworm main" || die "the root file system cannot be made"
	mkdir -p "$root/lib/modules"
	disk "$root" "$root_image.new" && mv "$root_image.new" "$root_image"; rm -rf "$root"
}

# disk DIRECTORY FILE: an ext4 image with these contents and a little room
disk() {
	rm -f "$2"
	mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$1" "$2" "$(($(du -sm "$1" | cut -f1) * 12 / 10 + 64))M" >/dev/null
}

# boot SUITE PLAN LOG: one machine with the disk $payload, until it switches off or 40 minutes have passed. Software emulation: no other is
# to be had everywhere, and on a busy host the kernel's test of its timer fails in it. Nothing is written to the images.
# Without cmpxchg16b, after which qemu 7.2 leaves bits of RAX in the flags: kernel 6.12 allocates memory with it and soon falls over.
boot() {
	local kernel=$cache/$1/kernel append="console=ttyS0 quiet panic=-1 no_timer_check net.ifnames=0 mitigations=off nokaslr random.trust_cpu=on plan=$2"
	[ "$2" != ipv6-off ] || append="$append ipv6.disable=1"
	timeout 2400 qemu-system-x86_64 -M q35 -accel tcg,thread=multi,tb-size=512 -cpu Nehalem,-cx16 -m 1536 -smp 2 -nodefaults -no-user-config -display none -no-reboot \
		-serial "file:$3.console" -serial "file:$3" -device virtio-rng-pci -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd.cpio" -append "$append" \
		-drive "file=$root_image,format=raw,if=virtio,snapshot=on" -drive "file=$kernel/modules.ext4,format=raw,if=virtio,readonly=on" \
		-drive "file=$payload,format=raw,if=virtio,readonly=on"
}
