import numpy as np

from distill.data.voc import open_voc


def test_the_result_is_in_voc_layout_and_boxes_lie_on_their_photographs(
    tool, make_folder, tmp_path
):
    mosaics = tool("make_mosaics")
    numbers = {"trainval": 12, "test": 3}
    root = mosaics.make_mosaics(make_folder(), tmp_path / "mosaics", numbers, seed=0)
    data = open_voc(str(root), train_split="trainval", test_split="test")
    assert (len(data.train), len(data.val)) == (12, 3)
    assert set(data.train.object_classes) <= {"class0", "class1", "class2"}
    for i in range(len(data.train)):
        pixels = np.asarray(data.train.load(i))
        assert pixels.shape == (240, 320, 3)
        objects = data.train.objects[i]
        assert 1 <= len(objects.corners) <= mosaics.MAX_OBJECTS
        for box, label in zip(objects.corners, objects.classes, strict=True):
            left, top, right, bottom = (int(side) for side in box)
            middle = pixels[(top + bottom) // 2, (left + right) // 2].astype(int)
            hue = int(data.train.object_classes[label].removeprefix("class"))
            assert middle.argmax() == hue


def test_a_box_hides_what_it_covers(tool):
    hidden_share = tool("make_mosaics").hidden_share
    assert hidden_share((1, 1, 10, 10), (6, 6, 20, 20)) == 25 / 100
    assert hidden_share((1, 1, 10, 10), (11, 1, 20, 10)) == 0
