"""DICOM series written by pydicom, for the tests: every entry can be changed or taken away."""

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

SERIES = generate_uid(entropy_srcs=["r2n2"])


def file_dataset(kind: str, shape: tuple[int, int], *, signed: bool = False) -> Dataset:
    """The entries that every file needs."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = SERIES, SERIES
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Nobody", "0", "MR"
    dataset.SeriesDescription = "cine"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    return dataset


def write_single(path, stored: np.ndarray, *, drop: tuple[str, ...] = (), **entries) -> Dataset:
    """One frame ``[H, W]`` of stored values in one file."""
    signed = np.issubdtype(stored.dtype, np.signedinteger)
    dataset = file_dataset(MRImageStorage, stored.shape, signed=signed)
    dataset.PixelSpacing = [2.0, 1.5]  # rows' distance first
    dataset.SliceThickness = 8.0
    dataset.ImagePositionPatient = [-31.0, 12.5, 40.0]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for name, value in entries.items():
        setattr(dataset, name, value)
    for name in drop:
        delattr(dataset, name)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def write_series(folder, slices: np.ndarray, *, normal=(0.0, 0.0, 1.0), drop: tuple[str, ...] = (), **entries) -> None:
    """``[T, S, H, W]`` stored values, a file a frame, names in no order of time; an entry may be a function of (t, s)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(0).permutation(slices.shape[0] * slices.shape[1])
    for number, (t, s) in enumerate(np.ndindex(slices.shape[:2])):
        position = np.array([-31.0, 12.5, 40.0]) + 8.0 * s * np.asarray(normal)
        given = {
            "InstanceNumber": 1 + s * len(slices) + t,
            "TriggerTime": 40.0 * t,
            "ImagePositionPatient": position.tolist(),
        }
        given |= {name: value(t, s) if callable(value) else value for name, value in entries.items()}
        left = {name: value for name, value in given.items() if name not in drop}
        missing = tuple(name for name in drop if name not in given)
        write_single(folder / f"IM{names[number]:04d}.dcm", slices[t, s], drop=missing, **left)


def write_enhanced(path, frames: np.ndarray, *, slope=1.0, delays=None) -> None:
    """``[N, H, W]`` stored values in one file, all frames at one place, as enhanced MR has them; one slope, or one a frame."""
    dataset = file_dataset(EnhancedMRImageStorage, frames.shape[1:])
    dataset.NumberOfFrames, dataset.InstanceNumber = len(frames), 1
    shared = Dataset()
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2.0, 1.5], 8.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    if np.ndim(slope) == 0:
        shared.PixelValueTransformationSequence = Sequence([rescale(slope)])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in range(len(frames)):
        group, position, timing = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-31.0, 12.5, 40.0]
        group.PlanePositionSequence = Sequence([position])
        if np.ndim(slope):
            group.PixelValueTransformationSequence = Sequence([rescale(slope[index])])
        if delays is not None:
            timing.NominalCardiacTriggerDelayTime = delays[index]
            group.CardiacSynchronizationSequence = Sequence([timing])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.PixelData = frames.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def stored_values(path) -> np.ndarray:
    return pydicom.dcmread(path).pixel_array


def rescale(slope: float) -> Dataset:
    transformation = Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept, transformation.RescaleType = slope, 0.0, "US"
    return transformation


def compress(path, syntax: int) -> None:
    """Writes a file again with another of GDCM's transfer syntaxes."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
