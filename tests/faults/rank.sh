#!/bin/sh
# Runs a rank's command and writes its exit code to FOLDER/exit-RANK: horovodrun tells only that of the first rank that failed.
#   rank.sh FOLDER COMMAND...
folder=$1
shift
trap : TERM INT # horovodrun ends all shells when one rank has failed; the exit code is to be written all the same
"$@"
code=$?
echo "$code" >"$folder/exit-$HOROVOD_RANK"
exit "$code"
