"""Small scans in files, and headers that nibabel itself would not write."""

import nibabel as nib
import numpy as np

SHAPE = (16, 18, 20)
NIFTI = {  # field of a NIfTI-1 header: offset, type
    "dim": (40, "<i2"),
    "datatype": (70, "<i2"),
    "pixdim": (76, "<f4"),
    "vox_offset": (108, "<f4"),
    "scl_slope": (112, "<f4"),
    "scl_inter": (116, "<f4"),
    "xyzt_units": (123, "<u1"),
    "qform_code": (252, "<i2"),
    "sform_code": (254, "<i2"),
    "quatern": (256, "<f4"),
    "srow": (280, "<f4"),
    "magic": (344, "S4"),
}
MGH = {
    "version": (0, ">i4"),
    "dims": (4, ">i4"),
    "type": (20, ">i4"),
    "good_ras": (28, ">i2"),
    "delta": (30, ">f4"),
    "mdc": (42, ">f4"),
    "centre": (78, ">f4"),
}


def ramp(shape=SHAPE, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def save(path, data=None, affine=None, kind=nib.Nifti1Image):
    nib.save(kind(ramp() if data is None else data, np.eye(4) if affine is None else affine), path)
    return path


def patch(path, index=0, fields=NIFTI, **values):
    """Overwrite header fields of an uncompressed file, from this element of each on."""
    content = bytearray(path.read_bytes())
    for name, value in values.items():
        offset, dtype = fields[name]
        value = np.atleast_1d(np.asarray(value, dtype))
        start = offset + index * value.itemsize
        content[start : start + value.nbytes] = value.tobytes()
    path.write_bytes(content)
    return path
