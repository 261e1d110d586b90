"""glimpse chat at a terminal: editing, history, completion, commands, Ctrl-C."""
import base64
import os
import re
import shutil
import signal
import stat
import termios
import unittest

from program import ANSWER, IMAGE, QUESTION, CliTest, read_png
from terminal import Terminal

PROMPT = "> "
UP, LEFT, TAB, CTRL_A, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\t", "\x01", "\x03", "\x04"


class AtTerminal(CliTest):
    def setUp(self):
        super().setUp()
        shutil.copy(IMAGE, self.dir / "a picture.jpg")
        (self.dir / "folder").mkdir()
        shutil.copy(IMAGE, self.dir / "folder/größe.jpg")
        shutil.copy(IMAGE, self.dir / "folder/other.jpg")
        self.env = {"HOME": str(self.dir), "XDG_STATE_HOME": str(self.dir / "state"), "TMPDIR": str(self.dir)}
        self.history = self.dir / "state/glimpse/chat_history"

    def start(self, *flags, **env):
        terminal = Terminal("chat", "-t", "1", *flags, env={**self.env, **env})
        self.addCleanup(terminal.close)
        terminal.expect("Commands:", "\r\n" + PROMPT)
        return terminal

    def type(self, terminal, line, *says):
        terminal.send(line + "\r")
        return terminal.expect(*says, "\n" + PROMPT if says else PROMPT)

    def leave(self, terminal):
        terminal.send(CTRL_D)
        self.assertEqual(terminal.ended(), 0)

    def test_conversation(self):
        terminal = self.start()
        self.type(terminal, f"/image {IMAGE}", "448 x 448 pixels, for the next question")
        self.type(terminal, QUESTION, ANSWER, "visual tokens kept: 4 of 256")
        self.leave(terminal)
        self.assertTrue(terminal.modes() & termios.ECHO)

    def test_editing(self):
        terminal = self.start("-i", IMAGE)
        # The last word first, then Ctrl-A and the others before it; a wrong letter is taken out.
        terminal.send("square?" + CTRL_A + "What letterx" + "\x7f is on the orange ")
        self.type(terminal, "", ANSWER)
        self.leave(terminal)

    def test_mistakes_end_nothing(self):
        terminal = self.start("-i", IMAGE)
        for line, says in [("/jump", "unknown command '/jump'"), ("/image", "needs something behind it"), ("/image /nowhere.png", "/nowhere.png"),
                           ("/quit now", "takes nothing behind it"), ("/keep 7.5", "expected a fraction"), ("/prune nonsense", "nonsense"),
                           ("/prune glimpse(threshold=x)", "threshold"), ("/show", "no answer about an image yet"), ("/image -", "holds the questions")]:
            shown = self.type(terminal, line, "glimpse: ", says)
            self.assertNotIn("internal error", shown)
        self.type(terminal, QUESTION, ANSWER)
        self.type(terminal, "/show /nowhere/kept.png", "/nowhere")
        self.leave(terminal)

    def test_pruning(self):
        terminal = self.start("-i", IMAGE)
        self.type(terminal, "/prune", "known are none, ", "divprune", "pruning by glimpse, keeping what its own rule says")
        self.type(terminal, QUESTION, "visual tokens kept: 4 of 256")
        self.type(terminal, "/keep 0.5", "pruning by glimpse, keeping 0.5 of the visual tokens")
        self.type(terminal, "And now?", "visual tokens kept: 128 of 256")
        self.type(terminal, "/prune divprune", "pruning by divprune, keeping 0.5 of")
        self.type(terminal, "/keep 7", "keeping 7 visual tokens")
        self.type(terminal, "And now?", "visual tokens kept: 7 of 256")
        self.type(terminal, "/prune none", "pruning by none, keeping all visual tokens")
        self.type(terminal, "/keep 7", "takes no budget; choose a method that does with /prune")
        self.type(terminal, "And now?", "visual tokens kept: 256 of 256")
        self.type(terminal, "/prune auto", "pruning by glimpse, keeping what its own rule says")
        self.type(terminal, "/keep 9", "keeping 9 visual tokens")
        self.type(terminal, "/keep auto", "keeping what its own rule says")
        self.type(terminal, "/clear", "forgotten")
        self.type(terminal, f"/image {IMAGE}", "for the next question")
        self.type(terminal, QUESTION, ANSWER, "visual tokens kept: 4 of 256")
        self.leave(terminal)

    def test_completion(self):
        terminal = self.start()
        self.type(terminal, "/im" + TAB + str(self.dir) + "/a" + TAB, f"{self.dir}/a picture.jpg: 448 x 448")
        self.type(terminal, f"/image \"{self.dir}/a p" + TAB, f"{self.dir}/a picture.jpg: 448 x 448")
        self.type(terminal, "/image ~/fol" + TAB + "gr" + TAB, f"{self.dir}/folder/größe.jpg: 448 x 448")
        terminal.send("/image ~/folder/" + TAB + TAB)
        terminal.expect("größe.jpg  other.jpg", "\r\n", PROMPT + "/image ~/folder/")
        terminal.send(CTRL_C)
        terminal.expect("^C\r\n", PROMPT)
        self.type(terminal, "/prune div" + TAB + "+glim" + TAB + "(thres" + TAB + "0.5)", "pruning by divprune+glimpse(threshold=0.5)")
        self.type(terminal, "/image /nowhere/at/a" + TAB, "/nowhere/at/a")
        self.leave(terminal)

    def test_history(self):
        terminal = self.start()
        self.type(terminal, "Wie heißt das?", "decode")
        self.type(terminal, "/prune none", "pruning by none")
        self.leave(terminal)
        self.assertEqual(stat.S_IMODE(self.history.stat().st_mode), 0o600)
        # Two programs at once lose nothing of each other's.
        first, second = self.start(), self.start()
        first.send(UP + UP)
        first.expect("Wie heißt das?")
        first.send(CTRL_C)
        first.expect(PROMPT)
        self.type(first, "/keep 5", "keeping 5")
        self.type(second, "/keep 6", "keeping 6")
        self.leave(first)
        self.leave(second)
        last = self.start()
        last.send(UP + UP)
        last.expect("/keep 6", "5")
        self.assertIn("heißt", self.history.read_text())
        last.send("\r")
        last.expect("keeping 5 visual tokens", PROMPT)
        last.send("\x12heißt")  # Ctrl-R
        last.expect("Wie heißt das?")

    def test_no_history(self):
        terminal = self.start("--no-history")
        self.type(terminal, "/keep 5", "keeping 5")
        terminal.send(UP)
        terminal.expect("/keep 5")
        terminal.send(CTRL_C)
        terminal.expect(PROMPT)
        self.leave(terminal)
        self.assertFalse(self.history.exists())

    def test_history_that_is_none(self):
        self.history.parent.mkdir(parents=True)
        self.history.write_text("something else\n")
        terminal = self.start()
        self.type(terminal, "/keep 5", "what is typed is not kept", "no history", "keeping 5")
        self.leave(terminal)
        self.assertEqual(self.history.read_text(), "something else\n")

    def stop_an_answer(self, terminal, *says):
        terminal.send("Hello\r")
        terminal.expect("\r\n")
        while len(terminal.shown) - terminal.read_to < 20:
            self.assertTrue(terminal.read(30))
        terminal.send(CTRL_C)
        terminal.expect(*says, PROMPT)

    def test_interrupted_answer(self):
        terminal = self.start("-m", self.endless_model(), "-n", "100000")
        self.stop_an_answer(terminal, "stopped; the conversation goes on as if this had not been asked")
        self.type(terminal, "/keep 5", "/keep")
        # Another one is answered, and stopped, as well.
        self.stop_an_answer(terminal, "stopped")
        self.leave(terminal)

    def test_interrupted_line(self):
        terminal = self.start()
        terminal.send("half a quest")
        terminal.expect("half a quest")
        terminal.send(LEFT * 5 + CTRL_C)
        self.assertNotIn("half", terminal.expect("^C\r\n", PROMPT))  # it stays, but once
        terminal.send(CTRL_C)
        terminal.expect("Ctrl-D or /quit leaves", PROMPT)
        self.type(terminal, "/keep 5", "keeping 5")
        self.assertEqual(terminal.modes() & (termios.ICANON | termios.ISIG), 0)  # while a line is edited
        terminal.send("/quit\r")
        self.assertEqual(terminal.ended(), 0)
        self.assertTrue(terminal.modes() & termios.ICANON and terminal.modes() & termios.ISIG)

    def test_ended_from_outside(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            terminal = self.start()
            os.kill(terminal.pid, number)
            self.assertEqual(terminal.ended(), 130)
            self.assertTrue(terminal.modes() & termios.ICANON)

    def test_cut_answers_say_so(self):
        terminal = self.start("-i", IMAGE, "-n", "3")
        self.type(terminal, QUESTION, "the answer was cut after 3 tokens (--max-new-tokens)")

    def shown_file(self, text):
        path = re.search(r"(/\S+\.png): 4 of 256 visual tokens kept", text)[1]
        self.assertEqual(read_png(path)[:3], (448, 448, 3))
        return path

    def asked_what_it_shows(self):
        """A terminal that /show has asked what it can draw, and that has not answered yet."""
        terminal = self.start("-i", IMAGE)
        self.type(terminal, QUESTION, ANSWER)
        terminal.send("/show\r")
        terminal.expect("\x1b[c")
        return terminal

    def test_show_where_the_terminal_shows_nothing(self):
        terminal = self.asked_what_it_shows()
        terminal.send("\x1b[?62;22c")
        self.shown_file(terminal.expect("visual tokens kept", PROMPT))
        # It is asked once.
        self.type(terminal, f"/show {self.dir}/kept.png", "kept.png: 4 of 256")
        self.assertEqual(terminal.shown.count("\x1b[c"), 1)
        self.assertNotIn("\x1bP", terminal.shown)
        self.shown_file(f"{self.dir}/kept.png: 4 of 256 visual tokens kept")
        self.leave(terminal)

    def test_show_where_the_terminal_does_not_answer(self):
        terminal = self.asked_what_it_shows()
        terminal.send("/keep 9\r")  # typed meanwhile
        self.shown_file(terminal.expect("visual tokens kept"))
        terminal.expect("keeping 9 visual tokens", PROMPT)
        self.leave(terminal)

    def test_show_by_kitty(self):
        terminal = self.asked_what_it_shows()
        terminal.send("\x1b_Gi=31;OK\x1b\\\x1b[?62;c")
        shown = terminal.expect("visual tokens kept", PROMPT)
        path = self.shown_file(shown)
        pieces = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", shown)
        self.assertEqual(pieces[0][0], "a=T,f=100,q=2,m=1")
        self.assertEqual([keys for keys, _ in pieces[1:]], ["m=1"] * (len(pieces) - 2) + ["m=0"])
        self.assertTrue(all(len(data) <= 4096 for _, data in pieces))
        with open(path, "rb") as file:
            self.assertEqual(base64.b64decode("".join(data for _, data in pieces)), file.read())
        self.leave(terminal)

    def test_show_by_sixel(self):
        terminal = self.asked_what_it_shows()
        terminal.send("\x1b[?62;4;22c")
        shown = terminal.expect("visual tokens kept", PROMPT)
        self.shown_file(shown)
        self.assertRegex(shown, "\x1bP[0-9;]*q\"1;1;448;448")
        self.leave(terminal)


if __name__ == "__main__":
    unittest.main()
