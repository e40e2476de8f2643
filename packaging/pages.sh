#!/bin/sh
# Man pages and completions of all programs, into target/pages, from the programs' own command definitions
# (src/pages.rs); fwupdate.toml(5) is docs/configuration.md, by pandoc.
set -eu

cd "$(dirname "$0")/.."
out=$PWD/target/pages
rm -rf "$out"
${CARGO:-cargo} build --quiet --features pages,fwupdate-hub/pages --bins -p fwupdate -p fwupdate-hub
programs=target/debug
FWUPDATE_PAGES=$out/agent $programs/fwupdated
FWUPDATE_PAGES=$out/agent $programs/fwupdatectl
FWUPDATE_PAGES=$out/tools $programs/fwupdate-bundle
FWUPDATE_PAGES=$out/tools $programs/fwupdate-cloud
FWUPDATE_PAGES=$out/tools $programs/fwupdate-hub
mkdir -p "$out/agent/man5"
{
    printf '# NAME\n\nfwupdate.toml - settings of the firmware update agent\n\n'
    cat docs/configuration.md
} | pandoc --standalone --from gfm --to man --metadata title=fwupdate.toml --metadata section=5 \
    --metadata header=fwupdate -o "$out/agent/man5/fwupdate.toml.5"
