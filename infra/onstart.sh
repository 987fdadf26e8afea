# Runs at every start of a rented container (POSIX sh). The machine costs money until it is destroyed,
# so this script is a dead man's switch: each second it checks whether the watcher has touched
# $TSGB_ALIVE_FILE. It counts its checks and reads no clock, because a host may freeze the container
# for hours. Keys are passed by stdin, where `ps` does not show them.
export HOME="${HOME:-/root}" TSGB_ALIVE_FILE="${TSGB_ALIVE_FILE:-${HOME:-/root}/.tsgb-alive}"
rm -f "$TSGB_ALIVE_FILE"
call() { # method, body
  if command -v curl >/dev/null; then
    printf 'header = "Authorization: Bearer %s"\n' "$CONTAINER_API_KEY" | curl -sSm 30 -K - -X "$1" \
      -H 'Content-Type: application/json' -d "$2" "$TSGB_VAST_URL/api/v0/instances/$CONTAINER_ID/"
  else
    python3 -c 'import os,sys,urllib.request as u
e=os.environ
h={"Authorization":"Bearer "+e["CONTAINER_API_KEY"],"Content-Type":"application/json"}
a=e["TSGB_VAST_URL"]+"/api/v0/instances/"+e["CONTAINER_ID"]+"/"
u.urlopen(u.Request(a,sys.argv[2].encode(),h,method=sys.argv[1]),timeout=30)' "$1" "$2"
  fi
}
(eval "$(printf %s "$TSGB_BOOT_B64" | base64 -d | gunzip)") &
child=$! stopping='' n=0 limit=$TSGB_BOOT_SECONDS
trap 'stopping=1; kill "$child"' TERM
while kill -0 "$child" 2>/dev/null && [ "$n" -lt "$limit" ]; do
  sleep 1
  if [ -e "$TSGB_ALIVE_FILE" ]; then
    rm -f "$TSGB_ALIVE_FILE"
    n=0 limit=${TSGB_SILENT_SECONDS:-300}
  else n=$((n + 1)); fi
done
code=silent
kill -0 "$child" 2>/dev/null || { wait "$child"; code=$?; }
echo "tsgb: the watcher has ended ($code)"
[ -z "$stopping" ] || exit "$code" # the container is being stopped
case $code in
130 | 143) sleep "${TSGB_SILENT_SECONDS:-300}" ;; # a person or the flow stopped it, and decides
137) sleep "${TSGB_GRACE_SECONDS:-60}" ;;         # the workers notice that it is gone, and save
esac
n=0
while :; do # whatever the answer is, until the container is gone
  call DELETE '{}'
  n=$((n + 1))
  [ "$n" -lt 60 ] || call PUT '{"state":"stopped"}'
  sleep 10
done
