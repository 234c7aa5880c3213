#!/bin/sh
# Installs, upgrades, removes and purges the packages in a copy of this machine's file system that is gone afterwards: an overlay
# in a mount namespace of its own, so that nothing can stay behind, whatever fails.
#
#   install.sh DEB RPM VERSION DIR     DIR is an empty directory to mount the copy on
set -eu

fail() {
	echo "FAILED: $*" >&2
	exit 1
}

if [ "${INSIDE:-}" = "" ]; then
	top=$4
	mount -t tmpfs -o mode=0755 hsmbridge-test "$top"
	mkdir "$top/upper" "$top/work" "$top/root"
	mount -t overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" overlay "$top/root"
	mount -t proc proc "$top/root/proc"
	mount --rbind /dev "$top/root/dev"
	mkdir "$top/root/packages"
	cp "$1" "$top/root/packages/p.deb"
	cp "$2" "$top/root/packages/p.rpm"
	cp "$0" "$top/root/packages/install.sh"
	# A systemctl that only says how it was called, on a machine that looks as if systemd ran.
	mkdir -p "$top/root/run/systemd/system"
	rm -f "$top/root/usr/bin/systemctl"
	printf '#!/bin/sh\necho "$*" >>/packages/systemctl.log\n' >"$top/root/usr/bin/systemctl"
	chmod 0755 "$top/root/usr/bin/systemctl"
	INSIDE=1 HOME=/root LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		exec chroot "$top/root" /bin/sh /packages/install.sh "$3"
fi

version=$1
cd /

# mode FILE 'MODE OWNER:GROUP'
mode() {
	got=$(stat -c '%a %U:%G' "$1")
	[ "$got" = "$2" ] || fail "$1 is $got, want $2"
}

# systemctl_was 'WHAT...': since the last time systemctl was called exactly so.
systemctl_was() {
	got=$(tr '\n' ';' </packages/systemctl.log)
	[ "$got" = "$1" ] || fail "systemctl was called with $got, want $1"
	: >/packages/systemctl.log
}

# Docker's images leave out documentation. Triggers would index all man pages of the machine.
dpkg() { command dpkg --no-triggers --path-include='/usr/share/man/*' --path-include='/usr/share/doc/*' "$@" >/packages/log 2>&1 || fail "dpkg $*: $(cat /packages/log)"; }
rpm() { command rpm --dbpath /packages/rpm "$@" >/packages/log 2>&1 || fail "rpm $*: $(cat /packages/log)"; }
said() { grep -q "$1" /packages/log || fail "not said: $1: $(cat /packages/log)"; }

ours() { find /etc /usr /var '(' -name '*hsmbridge*' -o -name '*hsmceremony*' ')' -not -path '/var/lib/dpkg/*' -not -path '/var/cache/*' 2>/dev/null | sort; }

# What any installed version has to be.
check() {
	mode /etc/hsmbridge '750 root:hsmbridge'
	mode /etc/hsmbridge/hsmbridge.yaml '640 root:hsmbridge'
	mode /usr/bin/hsmbridge '755 root:root'
	mode /usr/bin/hsmceremony '755 root:root'
	[ "$(getent passwd hsmbridge | cut -d: -f6,7)" = /var/lib/hsmbridge:/usr/sbin/nologin ] || fail 'the user is wrong'
	[ "$(hsmceremony version)" = "hsmceremony $version" ] || fail "hsmceremony says $(hsmceremony version)"
	[ "$(hsmbridge --version)" = "hsmbridge version $version" ] || fail "the program says $(hsmbridge --version)"
	setpriv --reuid hsmbridge --regid hsmbridge --init-groups hsmbridge -c /etc/hsmbridge/hsmbridge.yaml config check >/packages/log 2>/packages/warnings ||
		fail "the daemon's user cannot read the sample: $(cat /packages/log /packages/warnings)"
	# The sample's PIN is for its user to put there, and nothing else is missing.
	[ "$(cat /packages/warnings)" = 'hsmbridge: warning: token demo cannot be used: pin_file: open /etc/hsmbridge/demo.pin: no such file or directory' ] ||
		fail "the check of the sample warns: $(cat /packages/warnings)"
	if find /etc/systemd -name '*hsmbridge*' | grep .; then
		fail 'a unit is enabled'
	fi
}

dpkg --purge hsmbridge
rm -rf /var/lib/hsmbridge /etc/hsmbridge
ours >/packages/before
: >/packages/systemctl.log

# --- .deb
dpkg --install /packages/p.deb
said 'edit /etc/hsmbridge/hsmbridge.yaml'
systemctl_was 'daemon-reload;try-restart hsmbridge.service;'
check
for page in hsmbridge hsmbridge-import hsmbridge-config-check hsmceremony; do
	MANWIDTH=100 man --pager=cat "$page" 2>/packages/log | grep -q NAME || fail "man $page: $(cat /packages/log)"
	[ ! -s /packages/log ] || fail "man $page: $(cat /packages/log)"
done
man --pager=cat hsmbridge | grep -q 'EXIT STATUS' || fail 'the man page has no exit codes'
for program in hsmbridge hsmceremony; do
	bash -n "/usr/share/bash-completion/completions/$program"
	bash -c ". /usr/share/bash-completion/completions/$program && complete -p $program" >/dev/null
done
[ "$(bash -c '. /usr/share/bash-completion/completions/hsmceremony
	COMP_WORDS=(hsmceremony wrap -dry) COMP_CWORD=2 && _hsmceremony && echo "${COMPREPLY[*]}"')" = -dry-run ] || fail 'the completion of hsmceremony is wrong'

# The units, alone and with each example of a drop-in.
dropins=/etc/systemd/system/hsmbridge.service.d
for example in none /usr/share/doc/hsmbridge/examples/*.conf; do
	if [ "$example" != none ]; then
		mkdir -p "$dropins"
		cp "$example" "$dropins/"
	fi
	systemd-analyze verify hsmbridge.service hsmbridge.socket >/packages/log 2>&1 || fail "systemd-analyze verify ($example): $(cat /packages/log)"
	! grep hsmbridge /packages/log || fail "systemd-analyze verify ($example): $(cat /packages/log)"
	rm -rf "$dropins"
done
systemd-sysusers --dry-run /usr/lib/sysusers.d/hsmbridge.conf >/packages/log 2>&1 || fail "sysusers: $(cat /packages/log)"

echo '# mine' >>/etc/hsmbridge/hsmbridge.yaml
install -d -o hsmbridge -g hsmbridge -m 0700 /var/lib/hsmbridge
echo data >/var/lib/hsmbridge/state.db
dpkg --install /packages/p.deb
! grep -q 'edit /etc' /packages/log || fail 'an upgrade tells how to begin'
systemctl_was 'daemon-reload;try-restart hsmbridge.service;'
check
grep -q '# mine' /etc/hsmbridge/hsmbridge.yaml || fail 'an upgrade overwrote the configuration'

dpkg --remove hsmbridge
systemctl_was 'disable --now hsmbridge.socket hsmbridge.service;daemon-reload;'
[ ! -e /usr/bin/hsmbridge ] && [ ! -e /usr/bin/hsmceremony ] || fail 'the program is still there'
grep -q '# mine' /etc/hsmbridge/hsmbridge.yaml || fail 'remove took the configuration'
grep -q data /var/lib/hsmbridge/state.db || fail 'remove took the data'

dpkg --purge hsmbridge
ours >/packages/after
diff /packages/before /packages/after || fail 'something stayed behind after a purge'
: >/packages/systemctl.log
echo 'deb: good'

# --- .rpm, on a machine without the user
userdel hsmbridge
! getent group hsmbridge >/dev/null || groupdel hsmbridge
mkdir /packages/rpm
rpm --install --nodeps /packages/p.rpm
systemctl_was 'daemon-reload;try-restart hsmbridge.service;'
said 'edit /etc/hsmbridge/hsmbridge.yaml'
check
rpm --verify --nodeps hsmbridge
echo '# mine' >>/etc/hsmbridge/hsmbridge.yaml
install -d -o hsmbridge -g hsmbridge -m 0700 /var/lib/hsmbridge
echo data >/var/lib/hsmbridge/state.db
rpm --upgrade --force --nodeps /packages/p.rpm
: >/packages/systemctl.log
check
grep -q '# mine' /etc/hsmbridge/hsmbridge.yaml || fail 'an upgrade overwrote the configuration'
rpm --erase --nodeps hsmbridge
systemctl_was 'disable --now hsmbridge.socket hsmbridge.service;daemon-reload;'
[ ! -e /usr/bin/hsmbridge ] && [ ! -e /usr/bin/hsmceremony ] || fail 'the program is still there'
grep -q '# mine' /etc/hsmbridge/hsmbridge.yaml.rpmsave || fail 'the removal took the configuration'
grep -q data /var/lib/hsmbridge/state.db || fail 'the removal took the data'
echo 'rpm: good'
