"""The page of glimpse serve in a real browser."""
import os
import sys
import tempfile
import unittest
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import ANSWER, IMAGE, QUESTION, ROOT  # noqa: E402
from serving import Server  # noqa: E402

CLIPS = ROOT / "tests/data/videos"
SHOTS = os.environ.get("GLIMPSE_SHOTS")  # a folder for pictures of the page
PIXELS = """
  const canvas = document.querySelector("canvas");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return data.reduce((sum, value, i) => (sum * 31 + value) % 1000003, 7);"""


class Page(unittest.TestCase):
    FLAGS = ()

    def setUp(self):
        self.server = Server(*self.FLAGS)
        self.addCleanup(self.server.stop)
        options = webdriver.ChromeOptions()
        folder = tempfile.TemporaryDirectory(prefix="glimpse-page-")
        self.addCleanup(folder.cleanup)
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,900",
                     "--user-data-dir=" + folder.name):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        self.addCleanup(self.browser.quit)
        self.browser.get(self.server.url)

    def find(self, name):
        return self.browser.find_element(By.CSS_SELECTOR, name)

    def all(self, name):
        return [element.text for element in self.browser.find_elements(By.CSS_SELECTOR, name)]

    def until(self, what):
        return WebDriverWait(self.browser, 60, 0.1).until(lambda browser: what())

    def shoot(self, name):
        if SHOTS:
            self.browser.save_screenshot(str(Path(SHOTS) / (name + ".png")))

    def slide(self, name, value):
        self.browser.execute_script("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
                                    self.find(name), value)

    def show_picture(self):
        self.find("#files").send_keys(IMAGE)
        self.until(lambda: self.browser.find_elements(By.CSS_SELECTOR, "canvas"))

    def ask(self, question=QUESTION, button="#ask"):
        self.find("#question").send_keys(question)
        self.find(button).click()
        self.until(lambda: self.find("#ask").is_enabled())


class Open(Page):
    def test_ask_see_compare(self):
        self.until(lambda: "glimpse-tiny" in self.find("#model").text)
        self.show_picture()
        plain = self.browser.execute_script(PIXELS)
        self.ask()
        self.assertEqual(self.all(".text"), [ANSWER])
        self.assertIn("4 of 256 visual tokens kept", self.all(".facts")[0])
        kept = self.browser.execute_script(PIXELS)
        self.assertNotEqual(kept, plain)
        self.shoot("asked")
        self.find("#heat").click()
        self.assertNotEqual(self.browser.execute_script(PIXELS), kept)
        self.find("#heat").click()
        # Another threshold keeps other tokens; the picture is known by now.
        self.slide("#threshold", 0)
        self.ask()
        self.assertNotIn("4 of 256", self.all(".facts")[-1])
        self.assertIn("from the cache", self.all(".facts")[-1])
        self.assertNotEqual(self.browser.execute_script(PIXELS), kept)
        self.slide("#threshold", 0.5)
        self.find("#clear").click()
        self.show_picture()
        self.ask(button="#compare")
        self.assertEqual(self.all(".text"), [ANSWER, ANSWER])
        self.assertTrue(any("4 of 256" in fact for fact in self.all(".facts")))
        self.assertTrue(any("256 of 256" in fact for fact in self.all(".facts")))
        self.shoot("compared")
        self.browser.set_window_size(400, 800)
        wide = self.browser.execute_script("return document.documentElement.scrollWidth > innerWidth")
        self.assertFalse(wide)
        self.shoot("phone")
        problems = [entry for entry in self.browser.get_log("browser")
                    if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
        self.assertEqual(problems, [])

    def test_examples_stop_and_follow_up(self):
        self.until(lambda: len(self.browser.find_elements(By.CSS_SELECTOR, "#examples img")) == 3)
        for example, answer in zip(self.browser.find_elements(By.CSS_SELECTOR, "#examples button"),
                                   (ANSWER, "There are 2 diamonds.", "The shape with the letter J is blue.")):
            example.click()
            self.until(lambda: self.browser.find_elements(By.CSS_SELECTOR, "canvas") and self.find("#question").get_attribute("value"))
            self.find("#ask").click()
            self.until(lambda: self.find("#ask").is_enabled() and self.all(".facts"))
            self.assertEqual(self.all(".text"), [answer])
        self.shoot("example")
        # A further turn is about the same picture, whose tokens are known.
        self.ask("What shape is the letter J on?")
        self.assertIn("from the cache", self.all(".facts")[-1])
        self.assertEqual(len(self.all(".turn")), 2)
        # An answer that never ends by itself is stopped, here and at the server.
        self.browser.execute_script("""
          const real = fetch;
          window.fetch = (url, how) => real(url, how && how.body
              ? {...how, body: JSON.stringify({...JSON.parse(how.body), ignore_eos: true, max_tokens: 400})} : how);""")
        self.find("#question").clear()
        self.find("#question").send_keys("What else?")
        self.find("#ask").click()
        self.until(lambda: len(self.all(".text")) == 3 and self.all(".text")[-1])
        self.find("#stop").click()
        self.until(lambda: self.find("#ask").is_enabled())
        self.assertEqual(self.all(".error"), ["stopped"])
        self.server.idle(2)

    def test_video(self):
        """It plays, and what was kept is shown beside each other, with what the clip shows then."""
        self.until(lambda: self.find("#or_videos").is_displayed())
        self.assertFalse(self.find("#of_videos").is_displayed())
        self.find("#files").send_keys(str(CLIPS / "vp9.webm"))
        self.until(lambda: self.browser.find_elements(By.CSS_SELECTOR, "video"))
        self.until(lambda: self.browser.execute_script("return document.querySelector('video').readyState") > 0)
        self.browser.execute_script("arguments[0].value = 6", self.find("#frames"))
        self.ask("What is shown?")
        self.assertEqual(self.all(".error"), [])
        self.assertEqual(len(self.all(".strip canvas")), 2)  # 4 frames of a clip of 2.5 seconds
        self.assertRegex(self.all(".strip figcaption")[0], r"^0\.4 s: \d+$")
        colours = lambda: self.browser.execute_script("""
          return [...document.querySelectorAll(".strip canvas")].map(canvas => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(Array.from({length: data.length / 4}, (_, i) => data[4 * i])).size; });""")
        self.until(lambda: min(colours()) > 8)  # more than the tints of kept and dropped tokens
        self.shoot("video")
        self.ask("And what else?")
        self.assertIn("from the cache", self.all(".facts")[-1])
        problems = [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
        self.assertEqual(problems, [])

    def test_keys_and_errors(self):
        self.find("#question").send_keys("Hello" + Keys.ENTER)
        self.until(lambda: self.all(".facts"))
        self.find("#question").send_keys("7" * 9000)
        self.find("#ask").click()
        self.until(lambda: self.all(".error"))
        self.assertIn("context", self.all(".error")[0])


class Locked(Page):
    FLAGS = ("--api-key", "secret")

    def test_key(self):
        self.until(lambda: "API key" in self.find("#model").text)
        self.find("#key").send_keys("secret" + Keys.TAB)
        self.until(lambda: "glimpse-tiny" in self.find("#model").text)
        self.show_picture()
        self.ask()
        self.assertEqual(self.all(".text"), [ANSWER])


del Page  # what it says is tested in its kinds

if __name__ == "__main__":
    unittest.main()
