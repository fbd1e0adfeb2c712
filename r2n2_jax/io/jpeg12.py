"""A plug-in for pydicom: JPEG of 12 bits, which GDCM decodes and pydicom's own plug-in for GDCM leaves out."""

import gdcm
from pydicom.pixels.decoders import JPEGExtended12BitDecoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("python-gdcm",)}


def is_available(uid: str) -> bool:
    """Whether it decodes the transfer syntax: pydicom asks every plug-in."""
    return uid == JPEGExtended12Bit


def decode(source: bytes, runner: DecodeRunner) -> bytes:
    """The values of one encoded frame, as pydicom's ``runner`` describes it."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, runner.bits_allocated, runner.bits_stored, runner.bits_stored - 1, 0))
    image.SetDataElement(element)
    return image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM gives bytes as text


def register() -> None:
    """Makes it known to pydicom, behind the plug-ins that pydicom has itself."""
    if "r2n2_jax" not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin("r2n2_jax", (__name__, decode.__name__))
