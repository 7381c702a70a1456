#!/bin/sh
# The first address that apt has for Debian itself, for debootstrap; nothing where there is none.
cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
    sed -nE 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/p; s/^deb[[:space:]]+(\[[^]]*\][[:space:]]*)?([^[:space:]]+)[[:space:]].*/\2/p' |
    head -n 1
