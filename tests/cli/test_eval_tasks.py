"""glimpse eval on the tasks that come with it, on a few rows in their published formats."""
import json
import shutil
import unittest

from evaluation import ROWS, EvalTest, StubJudge, answer_rows
from program import TEST, read_png

ASK_BOX = " Please provide the bounding box coordinate of the region that can help you answer the question better."


class Tasks(EvalTest):
    def setUp(self):
        super().setUp()
        self.long = [row for row in ROWS if row["dataset"] == "read" and not row["short"]]
        self.short = [row for row in ROWS if row["dataset"] == "read" and row["short"]]

    def picture(self, row, place):
        """The row's picture at a place below the image root."""
        path = self.dir / "images" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TEST / "cot/read" / row["image"], path)

    def conversation(self, row, image, request=ASK_BOX):
        question = row["question"].split("\n")[0]
        return {"image": [image, f"{image}###{row['bboxs'][0]}"], "dataset": "elsewhere", "conversations": [
            {"from": "human", "value": f"<image>\n{question}{request}"}, {"from": "gpt", "value": "[0.1, 0.2, 0.3, 0.4]"},
            {"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": row["answer"]}]}

    def write_viscot(self, rows):
        self.picture(rows[0], "cot/gqa/a.jpg")
        self.picture(rows[1], "cot/gqa/val/b.jpg")  # one folder deeper, as in some archives
        self.picture(rows[2], "cot/docvqa/c.jpg")
        sets = {"gqa": [self.conversation(rows[0], "cot/gqa/a.jpg"), self.conversation(rows[1], "cot/gqa/b.jpg")],
                "docvqa": [self.conversation(rows[2], "cot/docvqa/c.jpg", "\n" + ASK_BOX.strip())]}
        for name, conversations in sets.items():
            (self.dir / f"{name}.json").write_text(json.dumps(conversations))

    def run_task(self, task, *flags, methods="none,glimpse", **how):
        out = self.ok(*self.eval(task, "--task", task, "--data-root", self.dir, "--image-root", self.dir / "images", *flags,
                                 methods=methods, limit=0), **how)
        return out, self.cells(task)

    def test_viscot(self):
        judge = StubJudge(self)
        self.write_viscot(self.long)
        flags = ["--sets", "gqa,docvqa", "--judge-url", judge.url, "--judge-model", "m"]
        out, cells = self.run_task("viscot", *flags)
        self.assertRegex(out, r"(?m)^method +budget +docvqa +gqa$")
        for cell in cells.values():
            self.assertEqual({name: (s["rows"], s["score"]) for name, s in cell["sets"].items()}, {"gqa": (2, 1), "docvqa": (1, 1)})
        self.assertGreater(cells["glimpse@own"]["all"]["mask"]["f1"], 0.5)
        asked = {body["messages"][1]["content"] for _, _, body in judge.seen}
        for row in self.long[:3]:
            self.assertIn(f"Question: {row['question']}\nCorrect answer: {row['answer']}\nAnswer to grade: {row['answer']}", asked)
        # A row whose box cannot be read is that row's own trouble.
        rows = json.loads((self.dir / "gqa.json").read_text())
        rows[1]["image"][1] = "cot/gqa/b.jpg###[1, 2]"
        (self.dir / "gqa.json").write_text(json.dumps(rows))
        broken = self.eval("broken", "--task", "viscot", "--data-root", self.dir, "--image-root", self.dir / "images", *flags,
                           limit=0)
        self.fails(broken, "gqa.json: row 1: ", "expected a box [x1, y1, x2, y2] after ###")
        self.fails([*broken, "--keep-going"], "gqa.json: row 1: left out", status=0)
        self.assertEqual(self.results("broken")["tasks"][0]["rows"], 2)

    def test_viscot_short(self):
        self.write_viscot(self.short)
        _, cells = self.run_task("viscot_short", "--sets", "gqa,docvqa")
        for cell in cells.values():
            self.assertEqual((cell["all"]["rows"], cell["average"]), (3, 1))

    def test_vstar(self):
        rows = self.long[:2]
        for i, row in enumerate(rows):
            self.picture(row, f"direct_attributes/sa_{i}.jpg")
        letters = [row["answer"][-2] for row in rows]  # "... is A."
        published = [{"image": f"direct_attributes/sa_{i}.jpg", "text": row["question"], "category": "direct_attributes",
                      "question_id": i, "label": letters[i] if i == 0 else "Z"} for i, row in enumerate(rows)]
        (self.dir / "test_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in published))
        _, cells = self.run_task("vstar")
        for cell in cells.values():
            self.assertEqual({name: s["score"] for name, s in cell["sets"].items()}, {"direct_attributes": 0.5})
            self.assertIsNone(cell["all"]["mask"])

        x1, y1, x2, y2 = rows[0]["bboxs"][0]
        boxed = [{"image": "direct_attributes/sa_0.jpg", "question": rows[0]["question"], "options": ["An A.", "A B."],
                  "bbox": [[x1, y1, x2 - x1, y2 - y1]], "target_object": ["square"], "label": "A"}]
        (self.dir / "vstar.jsonl").write_text(json.dumps(boxed[0]) + "\n")
        _, cells = self.run_task("vstar_boxes", methods="none,reference")
        (_, line), = (each for each in answer_rows(self.dir / "vstar_boxes/answers/vstar_boxes") if each[0] == "reference@own")
        self.assertEqual(line["keep"], [[46, 47, 62, 63]])  # the tokens of x1 y1 x2 y2
        self.assertEqual(cells["reference@own"]["all"]["mask"]["f1"], 1)

    def write_refcoco(self):
        rows = []
        for i, row in enumerate(self.long[:3]):
            self.picture(row, f"coco/train2014/{i}.jpg")
            box = row["bboxs"][0]
            rows.append({"image": f"coco/train2014/{i}.jpg", "problem": row["question"], "solution": box if i else [box],
                         "normalized_solution": [round(1000 * x / row["width"]) for x in box]})
        (self.dir / "refcoco_val.json").write_text(json.dumps(rows))

    def test_refcoco(self):
        self.write_refcoco()
        _, cells = self.run_task("refcoco", "--sets", "refcoco_val")
        self.assertEqual({cell["all"]["score"] for cell in cells.values()}, {0})  # this model knows no boxes
        iou = {way: cell["all"]["mask"]["iou"] for way, cell in cells.items()}
        self.assertGreater(iou["glimpse@own"], 3 * iou["none@own"])

    def test_masks_only(self):
        self.write_refcoco()
        masks = self.dir / "masks"
        flags = ["--sets", "refcoco_val", "--masks-only", "--masks-out", masks]
        _, cells = self.run_task("refcoco", *flags, methods="none,glimpse,random@16")
        self.assertEqual(self.results("refcoco")["tasks"][0]["score"], "mask_iou")
        lines = list(answer_rows(self.dir / "refcoco/answers/refcoco"))
        for way, line in lines:
            self.assertLessEqual(line["tokens"], 1)
            width, height, channels, rows = read_png(masks / "refcoco" / way / "refcoco_val" / f"{line['id']}.png")
            self.assertEqual([height, width], line["images"][0]["grid"])
            white = [i for i, value in enumerate(b"".join(rows)[::channels]) if value == 255]
            self.assertEqual(white, line["keep"][0])
        self.assertEqual(len(lines), 9)
        self.assertEqual({line["kept_tokens"] for way, line in lines if way == "random@16"}, {16})
        score = {way: cell["all"]["score"] for way, cell in cells.items()}
        self.assertGreater(score["glimpse@own"], 3 * score["none@own"])
        # Rows without boxes have nothing to be compared with.
        rows = json.loads((self.dir / "refcoco_val.json").read_text())
        task = self.dir / "plain.yaml"
        task.write_text("rows: plain.json\nquestion: problem\nanswer: label\n")
        (self.dir / "plain.json").write_text(json.dumps([{"problem": row["problem"], "image": row["image"], "label": "x"} for row in rows]))
        self.fails(self.eval("x", "--task", task, "--image-root", self.dir / "images", "--masks-only", limit=0),
                   "has no picture with a box")
        self.fails(self.eval("x", "--masks-only", "-n", "3"), "--max-new-tokens", "--masks-only", status=2)


if __name__ == "__main__":
    unittest.main()
