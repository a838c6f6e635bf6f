"""A page in headless Chromium: what a script in it returns, and what the console says."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: chromium, chromium-browser, google-chrome"
)
EXPECTED = "setting log level to"  # BokehJS says it of itself
# Virtual time passes while nothing runs, also while the page still unpacks: a pause reads something, in real time.
INJECTED = """<script>
const pause = async () => {
  await new Response(new Blob(["."])).text();
  await new Promise((done) => setTimeout(done, 1));
};
const settled = async () => {
  const done = (one) => one.childElementCount || !one.getClientRects().length
    || one.getBoundingClientRect().top > innerHeight;
  for (let tries = 0; tries < 5000 && ![...document.querySelectorAll(".chart")].every(done); tries++) await pause();
};
addEventListener("load", async () => {
  await settled();
  let said;
  try { said = await (async () => { SCRIPT })(); } catch (error) { said = {error: String(error)}; }
  parent.postMessage(JSON.stringify(said), "*");
});
</script>
"""
PHONE = 390  # pixels
UNFOLDED = """
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  await settled();
  const wide = [...document.querySelectorAll("body *")].filter((one) => !one.closest(".wide table")
    && one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.className || one.tagName);
  const said = await (async () => { SCRIPT })();
  return {width: innerWidth, fits: document.documentElement.scrollWidth <= innerWidth, wide, said};
"""
FRAME = """<!DOCTYPE html><body style="margin: 0"><pre></pre>
<iframe src="page.html" style="width: WIDTHpx; height: 3000px; border: 0"></iframe>
<script>addEventListener("message", (event) => { document.querySelector("pre").textContent = event.data; });</script>"""


def visit(page: Path, script: str, folder: Path, width: int = 1200) -> tuple[Any, list[str]]:
    """Open a copy of a page from its file. Return what a script in it returns, and the lines of the console.

    In the script, `await settled()` waits for charts in sight. The page is in a frame of this width in pixels: a window
    cannot be as narrow as a phone.
    """
    assert CHROMIUM is not None
    html = page.read_text(encoding="utf-8")
    injected = INJECTED.replace("SCRIPT", script)
    (folder / "page.html").write_text(html.replace("</body>", injected + "</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--window-size=1300,3100", "--dump-dom"]
    done = subprocess.run([*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and EXPECTED not in line]
    said = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert said and said[1], f"the page said nothing: {done.stdout[:500]} {done.stderr[-2000:]}"
    return json.loads(unescape(said[1])), console


def check_on_a_phone(page: Path, folder: Path, script: str = "") -> Any:
    """Check that nothing is wider than the page on a phone, with everything unfolded, and that the console is silent.

    Tables that scroll by themselves may be. Return what a script in the page returns.
    """
    found, console = visit(page, UNFOLDED.replace("SCRIPT", script), folder, PHONE)
    assert console == [] and "error" not in found, (console, found)
    said = found.pop("said", None)
    assert found == {"width": PHONE, "fits": True, "wide": []}
    return said
