"""Names of the joints and parts of a body, in the order of the numbers that the benchmarks give them."""

JOINTS = (  # JHMDB, `pos_img` of joint_positions.mat
    "neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow", "left elbow",
    "right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle",
)  # fmt: skip
PARTS = (  # VIP, class ids 0 ... 19, which are CIHP's
    "background", "hat", "hair", "gloves", "sunglasses", "upper clothes", "dress", "coat", "socks", "trousers",
    "torso skin", "scarf", "skirt", "face", "left arm", "right arm", "left leg", "right leg", "left shoe", "right shoe",
)  # fmt: skip


def palette() -> list[int]:
    """The DAVIS (and PASCAL VOC) palette, 256 RGB triples in a row.

    The bits of an id are dealt to R, G, B in turn, lowest bits first, and fill each colour from its highest bit down.
    """
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for index in range(256)
        for channel in range(3)
    ]
