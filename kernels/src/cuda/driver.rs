//! A real device, through candle's CUDA tensors and cudarc.

use std::collections::HashMap;

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Storage, Tensor,
    cuda_backend::{
        WrapErr,
        cudarc::{
            driver::{
                CudaFunction, CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig,
                PushKernelArg, result, sys::CUdevice_attribute,
            },
            nvrtc::Ptx,
        },
    },
    op::BackpropOp,
    quantized::GgmlDType,
};

use super::{
    Cuda,
    args::{Address, Plain},
    gpu::{Gpu, Launch},
};
use crate::{
    Error, Linear, RawMatrix, Result,
    linear::{check_ids, check_input},
};

include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// One CUDA device and the stream on which everything happens.
pub struct Driver {
    device: CudaDevice,
    functions: HashMap<&'static str, CudaFunction>,
    num_multiprocessors: usize,
}

impl Driver {
    /// Number `ordinal` of the machine's devices.
    ///
    /// # Errors
    /// There is no such device, no driver, or kernels for this device are not in this build.
    pub fn open(ordinal: usize) -> Result<Cuda<Self>> {
        let missing =
            |error| Error::Unsupported(format!("no CUDA device {ordinal} is there: {error}"));
        let device = Device::new_cuda_with_stream(ordinal).map_err(missing)?;
        let device = device.as_cuda_device()?.clone();
        // SAFETY: all work is on the one stream that this device was made with.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        let context = stream.context();
        let (major, minor) = context.compute_capability().w()?;
        let capability = (10 * major + minor) as u32;
        let fits = PTX.iter().rfind(|(compiled_for, _)| *compiled_for <= capability);
        let (_, ptx) = fits.ok_or_else(|| {
            Error::Unsupported(format!("no kernels for compute capability {major}.{minor}"))
        })?;
        let module = context.load_module(Ptx::from_src(*ptx)).w()?;
        let load = |&name: &&'static str| Ok((name, module.load_function(name).w()?));
        let functions = KERNELS.iter().map(load).collect::<Result<_>>()?;
        let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let num_multiprocessors = context.attribute(count).w()?.max(1) as usize;
        Ok(Cuda::on(Self { device, functions, num_multiprocessors }))
    }

    fn pointer(&self, buffer: &CudaSlice<u8>) -> Address {
        buffer.device_ptr(&self.device.cuda_stream()).0
    }
}

/// An argument struct as cudarc wants it.
#[repr(transparent)]
struct Param<A>(A);

// SAFETY: `Plain` has the layout that the kernels expect.
unsafe impl<A: Plain> DeviceRepr for Param<A> {}

impl Gpu for Driver {
    type Buffer = CudaSlice<u8>;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    fn num_multiprocessors(&self) -> usize {
        self.num_multiprocessors
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        let (free, _) = self.device.cuda_stream().context().mem_get_info().w()?;
        Ok(Some(free as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: who asks for memory writes it before it is read.
        Ok(unsafe { self.device.alloc::<u8>(bytes.max(1)) }?)
    }

    fn read(&self, from: &CudaSlice<u8>, offset: usize, into: &mut [u8]) -> Result<()> {
        assert!(offset + into.len() <= from.len());
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let start = self.pointer(from) + offset as Address;
        // SAFETY: within the buffer; `into` lives until the stream was waited for.
        unsafe { result::memcpy_dtoh_async(into, start, stream.cu_stream()) }.w()?;
        Ok(stream.synchronize().w()?)
    }

    fn write(&self, to: &CudaSlice<u8>, offset: usize, from: &[u8]) -> Result<()> {
        assert!(offset + from.len() <= to.len());
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let start = self.pointer(to) + offset as Address;
        // SAFETY: within the buffer; pageable memory is staged before the call returns.
        Ok(unsafe { result::memcpy_htod_async(start, from, stream.cu_stream()) }.w()?)
    }

    fn address(&self, buffer: &CudaSlice<u8>) -> Address {
        self.pointer(buffer)
    }

    fn with_addresses<R>(
        &self,
        op: &'static str,
        tensors: &[&Tensor],
        f: impl FnOnce(&[Address]) -> Result<R>,
    ) -> Result<R> {
        let stream = self.device.cuda_stream();
        // All guards outlive `f`: of the storages against writers, of the pointers against frees.
        let storages: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
        let mut guards = Vec::with_capacity(tensors.len());
        let mut addresses = Vec::with_capacity(tensors.len());
        for (storage, layout) in &storages {
            let Some((start, _)) = layout.contiguous_offsets() else {
                return Err(Error::shape(op, format!("{:?} is not contiguous", layout.shape())));
            };
            let Storage::Cuda(cuda) = &**storage else {
                return Err(Error::shape(op, "a tensor lies on another device"));
            };
            let slice = cuda.as_cuda_slice::<f32>()?;
            let (pointer, guard) = slice.device_ptr(&stream);
            addresses.push(pointer + (start * size_of::<f32>()) as Address);
            guards.push(guard);
        }
        f(&addresses)
    }

    fn output(
        &self,
        (rows, cols): (usize, usize),
        fill: impl FnOnce(Address) -> Result<()>,
    ) -> Result<Tensor> {
        let stream = self.device.cuda_stream();
        // SAFETY: `fill` writes all of it. An empty tensor still needs an address.
        let mut slice = unsafe { self.device.alloc::<f32>((rows * cols).max(1)) }?;
        let (pointer, guard) = slice.device_ptr_mut(&stream);
        fill(pointer)?;
        drop(guard);
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, self.device.clone()));
        Ok(Tensor::from_storage(storage, (rows, cols), BackpropOp::none(), false))
    }

    unsafe fn launch<A: Plain>(&self, launch: Launch, args: &A) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let Launch { kernel, grid: [x, y], threads, shared_bytes } = launch;
        let size = |n: usize| {
            u32::try_from(n).map_err(|_| Error::shape(kernel, format!("a grid of {n} blocks")))
        };
        let function = self.functions.get(kernel).expect("kernels were loaded by these names");
        let config = LaunchConfig {
            grid_dim: (size(x)?, size(y)?, 1),
            block_dim: (size(threads)?, 1, 1),
            shared_mem_bytes: size(shared_bytes)?,
        };
        let param = Param(*args);
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(function);
        builder.arg(&param);
        // SAFETY: the caller answers for the arguments; the driver copies them before it returns.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    fn float_linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
        let (cols, dtype) = (parts[0].cols, parts[0].dtype);
        let dtype = match dtype {
            GgmlDType::F16 => DType::F16,
            GgmlDType::BF16 => DType::BF16,
            _ => DType::F32,
        };
        let device = self.device();
        let part = |part: &RawMatrix| {
            Tensor::from_raw_buffer(&part.data, dtype, &[part.rows, cols], &device)
        };
        let parts = parts.iter().map(part).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Box::new(Float { weights: Tensor::cat(&parts, 0)? }))
    }
}

/// Rows of W that become floats at a time: enough for cuBLAS, little beside a whole copy.
const ROWS_PER_PRODUCT: usize = 4096;

/// Float weights (rows, cols) as in the file, multiplied as floats by cuBLAS.
struct Float {
    weights: Tensor,
}

impl Float {
    fn dims(&self) -> Result<(usize, usize)> {
        Ok(self.weights.dims2()?)
    }
}

impl Linear for Float {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, cols) = self.dims()?;
        let num_x = check_input(x, cols)?;
        if num_x == 0 {
            return Ok(Tensor::zeros((0, rows), DType::F32, x.device())?);
        }
        let outs = (0..rows).step_by(ROWS_PER_PRODUCT).map(|start| {
            let w = self.weights.narrow(0, start, ROWS_PER_PRODUCT.min(rows - start))?;
            x.matmul(&w.to_dtype(DType::F32)?.t()?)
        });
        let outs = outs.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(if outs.len() == 1 { outs[0].clone() } else { Tensor::cat(&outs, 1)? })
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (rows, cols) = self.dims()?;
        check_ids(ids, rows)?;
        if ids.is_empty() {
            return Ok(Tensor::zeros((0, cols), DType::F32, self.weights.device())?);
        }
        let ids = Tensor::new(ids, self.weights.device())?;
        Ok(self.weights.index_select(&ids, 0)?.to_dtype(DType::F32)?)
    }

    fn bytes(&self) -> usize {
        self.weights.elem_count() * self.weights.dtype().size_in_bytes()
    }
}
