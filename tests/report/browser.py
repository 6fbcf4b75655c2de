"""A real headless Chromium for tests of the page, with its console and network on record."""

import base64
import json
import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
SIZES = {"phone": (390, 844), "tablet": (820, 1180), "laptop": (1366, 768)}
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One Chromium with a profile of its own."""

    def __init__(self, profile, downloads):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        os.environ["SE_AVOID_STATS"] = "true"  # of Selenium's, which would go over the network
        self.downloads = Path(downloads)
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.command("Browser.setDownloadBehavior", behavior="allow",
                     downloadPath=str(downloads))  # fmt: skip

    def command(self, name, **arguments):
        """Send a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def open(self, path, size="laptop", dark=False):
        """Load a file at a size; what was on record before is forgotten."""
        width, height = SIZES[size]
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=1, mobile=size == "phone")  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media="", features=[theme])
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(Path(path).resolve().as_uri())

    def run(self, script, *arguments):
        """Run JavaScript in the page and give its result."""
        return self.driver.execute_script(script, *arguments)

    def problems(self):
        """Messages of the console, refused content included."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Addresses asked for since the page was opened."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def screenshot(self, path):
        """Write the whole page as PNG."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(data["data"]))

    def pdf(self, path):
        """Print the page on A4 as PDF."""
        data = self.command("Page.printToPDF", printBackground=True, paperWidth=8.27,
                            paperHeight=11.69)  # fmt: skip
        Path(path).write_bytes(base64.b64decode(data["data"]))

    def saved(self, name, seconds=10):
        """Wait for a download and give its text."""
        import time

        path = self.downloads / name
        end = time.monotonic() + seconds
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return path.read_text(encoding="utf-8")


def needs_chromium():
    """Skip where there is no browser to drive."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here (apt-get install chromium chromium-driver)")
    pytest.importorskip("selenium")


def start(profile, downloads):
    """Start one, or skip where it is installed but does not run (no sandbox, other versions)."""
    needs_chromium()
    from selenium.common.exceptions import WebDriverException

    try:
        return Browser(profile, downloads)
    except WebDriverException as error:
        pytest.skip(f"chromium does not start here: {error.msg}")
