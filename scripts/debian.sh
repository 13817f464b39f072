# What the scripts share that put a Debian into a folder; to be sourced.

# The release and the mirror that this machine's own apt uses for Debian; nothing when that cannot be told.
host_release() {
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 2>/dev/null |
        awk '$1 == "Debian" && $2 !~ /-/ && $3 ~ /^https?:/ { print $2, $3; exit }' || true
}

host_mirror() { host_release | cut -d' ' -f2; }

# What is downloaded goes the way that this machine's own apt has.
use_host_proxy() {
    local proxy=''
    eval "$(apt-config shell proxy Acquire::http::Proxy 2>/dev/null)"
    [ -z "$proxy" ] || export http_proxy=$proxy
}

# bootstrap FOLDER RELEASE MIRROR [PACKAGES]: without a mirror it is debootstrap's own.
bootstrap() {
    local folder=$1 release=$2 mirror=$3 packages=${4:-}
    [[ $mirror != https:* ]] || packages+=${packages:+,}ca-certificates
    debootstrap --variant=minbase --arch=amd64 ${packages:+--include="$packages"} \
        "$release" "$folder" ${mirror:+"$mirror"}
}

# install_packages FOLDER PACKAGE...: none of their services is started.
install_packages() {
    local folder=$1
    shift
    printf '#!/bin/sh\nexit 101\n' >"$folder/usr/sbin/policy-rc.d"
    chmod 755 "$folder/usr/sbin/policy-rc.d"
    # One command to the caller, also in a condition, where set -e does not hold.
    chroot "$folder" apt-get -qy -o Acquire::Retries=3 install --no-install-recommends "$@" &&
        chroot "$folder" apt-get clean
}

# debootstrap mounts /proc and more in its folder: an interrupted run may have left them there.
remove_tree() {
    local mounted
    awk -v prefix="$1/" 'index($2, prefix) == 1 { print $2 }' /proc/self/mounts | sort -r |
        while read -r mounted; do umount "$mounted"; done
    rm -rf --one-file-system "$1"
}
