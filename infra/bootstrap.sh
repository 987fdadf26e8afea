# From a bare container to the watcher. onstart.sh runs this; it comes packed in TSGB_BOOT_B64.
#
# Every start of the container passes here, also an unasked one after a preemption. The code is in
# the store, under its sha256, and stays on the disk. Passwords are read from the environment by
# Python, so they are in no argument that `ps` shows, and nothing here prints them.
set -eu
python=${TSGB_PYTHON:-python3}
code=${TSGB_CODE_DIR:-$HOME/tsgb-code}/$TSGB_CODE_SHA256
export TSGB_INSTALL_TO="$code"

if [ ! -d "$code" ]; then
  "$python" -I - <<'PYTHON'
import base64, hashlib, io, os, shutil, sys, tarfile, time, urllib.error, urllib.request
from urllib.parse import unquote, urlsplit

url, wanted, target = (os.environ[f"TSGB_{n}"] for n in ("CODE_URL", "CODE_SHA256", "INSTALL_TO"))
ends_at = time.monotonic() + float(os.environ["TSGB_BOOT_SECONDS"]) / 2
url = url.removeprefix("webdav+")
parts = urlsplit(url)


def fetch():
    if parts.scheme in {"", "file"}:
        with open(unquote(parts.path), "rb") as file:
            return file.read()
    request = urllib.request.Request(url)
    user = os.environ.get("RCLONE_WEBDAV_USER")
    if user:
        both = f"{user}:{os.environ.get('RCLONE_WEBDAV_PASS', '')}".encode()
        basic = "Basic " + base64.b64encode(both).decode()
        request.add_unredirected_header("Authorization", basic)  # for this server only
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


pause = 1.0
while True:
    try:
        data = fetch()
        if hashlib.sha256(data).hexdigest() == wanted:
            break
        problem, heals = "is not what was published", True  # cut off, or half uploaded
    except urllib.error.HTTPError as error:
        problem, heals = f"HTTP {error.code}", error.code >= 500 or error.code in {408, 423, 425, 429}
    except FileNotFoundError:
        problem, heals = "there is no such file", False
    except (OSError, ValueError) as error:
        problem, heals = f"{type(error).__name__}: {error}", True
    print(f"tsgb: {url}: {problem}", flush=True)
    if not heals or time.monotonic() + pause > ends_at:
        sys.exit("tsgb: the code cannot be fetched")
    time.sleep(pause)
    pause = min(2 * pause, 30.0)

fresh = f"{target}.{os.getpid()}"
shutil.rmtree(fresh, ignore_errors=True)
with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
    archive.extractall(fresh, filter="data")
os.rename(fresh, target)  # whole, or not there
PYTHON
fi

if ! "$python" -I - <<'PYTHON'
import importlib.metadata as metadata
import os, sys

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
with open(os.environ["TSGB_INSTALL_TO"] + "/requirements.txt") as file:
    wanted = [Requirement(line.strip()) for line in file if line.strip()]
missing = []
for one in wanted:
    try:
        met = one.specifier.contains(metadata.version(one.name), prereleases=True)
    except metadata.PackageNotFoundError:
        met = False
    if not met:
        missing.append(str(one))
if missing:
    sys.exit(f"tsgb: not in this image: {', '.join(missing)}")
PYTHON
then
  "$python" -m pip install --no-input --disable-pip-version-check --quiet \
    --root-user-action ignore -r "$code/requirements.txt"
fi

export PYTHONPATH="$code${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TSGB_BOOT_B64 TSGB_INSTALL_TO
exec "$python" -m tsgb.cli worker machine \
  --resume-path "$TSGB_RUN_URL" --attempt "$TSGB_ATTEMPT" --arms "$TSGB_ARMS"
