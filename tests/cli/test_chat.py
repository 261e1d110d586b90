"""glimpse chat through a pipe."""
import signal
import subprocess
import unittest
from pathlib import Path

from program import ANSWER, IMAGE, IMAGES, PROGRAM, QUESTION, CliTest, run

NUMBER = "What number is on the green square?"
NUMBER_ANSWER = "The number on the green square is 3."


class Chat(CliTest):
    def chat(self, *lines, flags=()):
        return run("chat", *flags, input="".join(line + "\n" for line in lines), env={"HOME": "/"})

    def answers(self, *lines, flags=()):
        result = self.chat(*lines, flags=flags)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.splitlines()

    def test_turns(self):
        got = self.answers("/image " + IMAGE, QUESTION, "", NUMBER, "/quit", "never asked")
        self.assertEqual(len(got), 2)
        self.assertEqual(got[0], ANSWER)
        # The same conversation ends in the same answer; a cleared one begins like a fresh `ask`.
        again = self.answers(QUESTION, NUMBER, "/clear", "/image " + IMAGE, NUMBER, flags=["--image", IMAGE])
        self.assertEqual(again, [*got, NUMBER_ANSWER])

    def test_images_of_later_turns(self):
        got = self.answers("/image " + IMAGE, QUESTION, "/clear", "/image " + str(IMAGES / "read_001.jpg"),
                           "What number is on the blue diamond?")
        self.assertEqual(got, [ANSWER, "The number on the blue diamond is 7."])

    def test_windows_line_ends_and_no_last_one(self):
        result = run("chat", "-i", IMAGE, input=QUESTION + "\r\n/clear\r\n/image " + IMAGE + "\r\n" + NUMBER)
        self.assertEqual(result.stdout.splitlines(), [ANSWER, NUMBER_ANSWER], result.stderr)

    def test_pasted_paths(self):
        """As a terminal pastes a dragged file, an editor's mark before the text, white space of any kind."""
        spaced = self.dir / "my picture's.jpg"
        spaced.symlink_to(IMAGE)
        escaped = str(spaced).replace(" ", "\\ ").replace("'", "\\'")
        url = "file://" + str(spaced).replace(" ", "%20")
        for line in (f'/image "{IMAGE}"', f"/image '{IMAGE}'  ", f"/image {IMAGE} ", f"/image\t{IMAGE}\t", f"  /image  {IMAGE}",
                     f"\ufeff/image {IMAGE}", "/image ~/" + str(Path(IMAGE).relative_to("/")), f"/image {spaced}", f'/image "{spaced}"', f"/image {escaped}", f"/image {url}"):
            self.assertEqual(self.answers(line, QUESTION, "/quit ", "x"), [ANSWER], line)

    def test_cut_answers_say_so(self):
        result = self.chat("/image " + IMAGE, QUESTION, flags=["-n", "3"])
        self.assertEqual(result.returncode, 0)
        self.assertEqual(result.stderr, "glimpse: the answer was cut after 3 tokens (--max-new-tokens)\n")

    def test_mistakes_end_a_pipe(self):
        for line, says in [("/jump", "unknown command '/jump'"), ("/image", "needs something behind it: /image FILE"),
                           ("/quit now", "takes nothing behind it, got 'now'"), ("/keep 0", "expected a fraction"), ("/prune nothing", "nothing"), ("/show", "no answer"),
                           ("/image /nowhere.png", "/nowhere.png"), ("/image -", "standard input holds the questions")]:
            result = self.chat(line, "Hello")
            self.assertEqual((result.returncode, result.stdout), (1, ""), line)
            self.assertIn(says, result.stderr)

    def test_nothing_asked(self):
        self.assertEqual(self.answers(), [])
        self.assertIn("  /image FILE ", self.chat("/help").stderr)

    def test_pruning_and_what_it_kept(self):
        """The picture is drawn as `ask` draws it; what is silent changes only what comes."""
        kept, budgeted, asked = (self.dir / name for name in ("kept.png", "budgeted.png", "asked.png"))
        result = self.chat("/image " + IMAGE, QUESTION, f"/show {kept}", "/keep 9", "/prune divprune", QUESTION, f"/show {budgeted}", "/keep", "/prune none",
                           "/prune auto", "/prune")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.splitlines()[0], ANSWER)
        lines = result.stderr.splitlines()
        self.assertEqual(lines[:3], [f"{kept}: 4 of 256 visual tokens kept", f"{budgeted}: 9 of 256 visual tokens kept",
                                     "pruning by divprune, keeping 9 visual tokens"])
        self.assertEqual(lines[-1], "pruning by glimpse, keeping what its own rule says")
        self.ask("--overlay-out", asked)
        self.assertEqual(kept.read_bytes(), asked.read_bytes())
        self.assertNotEqual(kept.read_bytes(), budgeted.read_bytes())
        # Without a name, a file in a folder of the user's alone.
        shown = run("chat", "-i", IMAGE, input=f"{QUESTION}\n/show\n", env={"TMPDIR": str(self.dir)}).stderr
        file = Path(shown.split(": ")[0])
        self.assertEqual((file.parent.parent, file.parent.stat().st_mode & 0o777), (self.dir, 0o700))
        self.assertEqual(file.read_bytes(), asked.read_bytes())
        self.assertIn("--pictures: fish not in", run("chat", "--pictures", "fish").stderr)

    def test_interrupt(self):
        command = [PROGRAM, "chat", "-t", "1", "-m", self.endless_model(), "-n", "100000"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdin.write(b"Hello\nHello again\n")
            process.stdin.flush()
            self.assertTrue(process.stdout.read(5))
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)


if __name__ == "__main__":
    unittest.main()
