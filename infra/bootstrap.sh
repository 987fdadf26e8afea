# Turns a bare container into a worker. onstart.sh unpacks this script from TSGB_BOOT_B64 and runs it.
#
# It runs at every start of the container, also when the service starts it again after a preemption.
# The code is in the store, under its sha256, and stays on the disk. A failure is reported to the flow
# in the machine's exit record, because the container and its log are gone a moment later. Python
# reads passwords from the environment, so `ps` does not show them, and nothing here prints them.
set -eu
python=${TSGB_PYTHON:-python3}
code=${TSGB_CODE_DIR:-$HOME/tsgb-code}/$TSGB_CODE_SHA256
export TSGB_INSTALL_TO="$code"

# What is downloaded from here on is billed too, but the watcher starts to count only later.
export TSGB_NET_BEFORE="$HOME/.tsgb-net-before"
cp "${TSGB_NET_DEV:-/proc/net/dev}" "$TSGB_NET_BEFORE" || rm -f "$TSGB_NET_BEFORE"

# Code that the Python parts below share; nothing of tsgb is installed yet.
shared='
import base64, datetime, json, os, sys, urllib.error, urllib.request
from urllib.parse import unquote, urlsplit


def split_url(url):
    """Return the URL without our prefix, and its path if it is on this disk."""
    url = url.removeprefix("webdav+")
    parts = urlsplit(url)
    return url, unquote(parts.path) if parts.scheme in {"", "file"} else None


def send(url, method="GET", data=None):
    request = urllib.request.Request(url, data, method=method)
    user = os.environ.get("RCLONE_WEBDAV_USER")
    if user:
        both = (user + ":" + os.environ.get("RCLONE_WEBDAV_PASS", "")).encode()
        basic = "Basic " + base64.b64encode(both).decode()
        request.add_unredirected_header("Authorization", basic)  # for this server only
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def fail(outcome, message):
    """Write an exit record, which the flow reads, and exit."""
    attempt = int(os.environ["TSGB_ATTEMPT"])
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    record = {"attempt": attempt, "outcome": outcome, "message": message, "ended_at": now}
    data = json.dumps(record).encode()
    url, path = split_url(os.environ["TSGB_RUN_URL"])
    folder = f"machines/{attempt:04d}"
    try:
        if path is not None:
            os.makedirs(f"{path}/{folder}", exist_ok=True)
            with open(f"{path}/{folder}/exit.json", "wb") as file:
                file.write(data)
        else:
            for name in ("machines", folder):
                try:
                    send(f"{url}/{name}/", "MKCOL")
                except urllib.error.HTTPError:
                    pass  # usually it exists already
            send(f"{url}/{folder}/exit.json", "PUT", data)
    except (OSError, ValueError) as error:
        print(f"tsgb: no exit record: {type(error).__name__}: {error}", flush=True)
    sys.exit(f"tsgb: {message}")
'
fail() { # what failed, and its output, which ends with the reason
  printf '%s\n' "$2"
  printf '%s' "$2" | "$python" -I -c "$shared"'
lines = [line.strip() for line in sys.stdin if line.strip()]
errors = [index for index, line in enumerate(lines) if line.startswith("ERROR")]
reason = " ".join(lines[errors[-1] :] if errors else lines[-1:])
fail("bad_host", f"{sys.argv[1]}: {reason}"[:500])
' "$1"
  exit 1
}

if [ ! -d "$code" ]; then
  "$python" -I -c "$shared"'
import hashlib, io, shutil, tarfile, time

url, path = split_url(os.environ["TSGB_CODE_URL"])
wanted, target = os.environ["TSGB_CODE_SHA256"], os.environ["TSGB_INSTALL_TO"]
ends_at = time.monotonic() + float(os.environ["TSGB_BOOT_SECONDS"]) / 2


def fetch():
    if path is None:
        return send(url)
    with open(path, "rb") as file:
        return file.read()


pause = 1.0
while True:
    try:
        data = fetch()
        if hashlib.sha256(data).hexdigest() == wanted:
            break
        problem, is_transient = "is not what was published", True  # cut off, or half uploaded
    except urllib.error.HTTPError as error:
        problem = f"HTTP {error.code}"
        is_transient = error.code >= 500 or error.code in {408, 423, 425, 429}
    except FileNotFoundError:
        problem, is_transient = "there is no such file", False
    except (OSError, ValueError) as error:
        problem, is_transient = f"{type(error).__name__}: {error}", True
    print(f"tsgb: {url}: {problem}", flush=True)
    if not is_transient or time.monotonic() + pause > ends_at:
        fail("bad_host" if is_transient else "config", f"the code cannot be fetched: {url}: {problem}")
    time.sleep(pause)
    pause = min(2 * pause, 30.0)

fresh = f"{target}.{os.getpid()}"
shutil.rmtree(fresh, ignore_errors=True)
with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
    archive.extractall(fresh, filter="data")
os.rename(fresh, target)  # complete, or not there
'
fi

# What this image lacks is installed into a folder of its own: nothing of the image is replaced, so a
# torch that meets the requirement stays. Each file must have a hash that came with the code.
site=$code.packages
wanted=$("$python" -I - "$site" <<'PYTHON'
import importlib.metadata as metadata
import os, sys

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
site, code = sys.argv[1], os.environ["TSGB_INSTALL_TO"]
sys.path.insert(0, site)


def lines(name):
    with open(f"{code}/{name}") as file:
        text = file.read().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def is_met(requirement):
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def missing(name):
    return [one for one in map(Requirement, lines(name)) if not is_met(one)]


ours, own = missing("requirements.txt"), missing("requirements-own.txt")
if ours or own:
    print(f"tsgb: not in this image: {', '.join(map(str, ours + own))}", file=sys.stderr)
if ours:
    pinned = lines("pinned.txt")
    if any(one.name == "torch" for one in ours):
        pinned += lines("pinned-torch.txt")
    with open(f"{site}.txt", "w") as file:
        for line in pinned:
            one = Requirement(line.partition(" --hash")[0])
            if (one.marker is None or one.marker.evaluate()) and not is_met(one):
                print(line, file=file)
    print("pinned")
if own:
    print("own")
PYTHON
)
install() { # arguments of pip
  # The Python of a distribution refuses pip, for the sake of other programs; here are none.
  output=$(PYTHONPATH="$site" PIP_BREAK_SYSTEM_PACKAGES=1 "$python" -m pip install --no-input \
    --no-cache-dir --disable-pip-version-check --quiet --root-user-action ignore "$@" 2>&1) ||
    fail "its requirements cannot be installed" "$output"
}
case $wanted in *pinned*)
  install --require-hashes --only-binary :all: --no-deps --upgrade --target "$site" -r "$site.txt" ;;
esac
case $wanted in *own*) install -r "$code/requirements-own.txt" ;; esac

export PYTHONPATH="$code:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
output=$("$python" -c "import tsgb.worker.machine" 2>&1) || fail "its code cannot be started" "$output"
unset TSGB_BOOT_B64 TSGB_INSTALL_TO
exec "$python" -m tsgb.cli worker machine \
  --resume-path "$TSGB_RUN_URL" --attempt "$TSGB_ATTEMPT" --arms "${TSGB_ARMS-}"
