# Runs at every start of a rented container (POSIX sh). The machine costs money until it is gone, so
# this is the dead-man: it looks each second whether the watcher has touched $TSGB_ALIVE_FILE. Looks
# are counted and no clock is read, because a host may freeze us for hours. Keys go by stdin: `ps`.
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
child=$! told='' n=0 limit=$TSGB_BOOT_SECONDS
trap 'told=1; kill "$child"' TERM
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
[ -z "$told" ] || exit "$code" # the container is being stopped
case $code in
130 | 143) sleep "${TSGB_SILENT_SECONDS:-300}" ;; # stopped by a person or the flow, who decide
137) sleep "${TSGB_GRACE_SECONDS:-60}" ;;         # the workers save: they follow their parent
esac
n=0
while :; do # whatever the answer is: what counts is that this ends
  call DELETE '{}'
  n=$((n + 1))
  [ "$n" -lt 60 ] || call PUT '{"state":"stopped"}'
  sleep 10
done
