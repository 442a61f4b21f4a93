"""Names of the joints and parts of a body, in the order of the numbers that the benchmarks give them (EVALUATION, "Files")."""

JOINTS = (  # JHMDB, `pos_img` of joint_positions.mat
    "neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow", "left elbow",
    "right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle",
)  # fmt: skip
PARTS = (  # VIP, class ids 0 ... 19, which are CIHP's
    "background", "hat", "hair", "gloves", "sunglasses", "upper clothes", "dress", "coat", "socks", "trousers",
    "torso skin", "scarf", "skirt", "face", "left arm", "right arm", "left leg", "right leg", "left shoe", "right shoe",
)  # fmt: skip
