//! A real device, through candle's CUDA tensors and cudarc.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Storage, Tensor,
    cuda_backend::{
        WrapErr,
        cudarc::{
            driver::{
                CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut,
                DeviceRepr, DriverError, LaunchConfig, PushKernelArg, result,
                sys::{CUdevice_attribute, CUmemPool_attribute, CUmemoryPool, CUresult},
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
    image::Image,
    scratch::lock,
};
use crate::{
    Error, Linear, RawMatrix, Result,
    linear::{check_ids, check_input},
};

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Devices by number. Each is opened once, which takes a while; its backends share the stream.
static OPEN: Mutex<BTreeMap<usize, Arc<Driver>>> = Mutex::new(BTreeMap::new());

/// One CUDA device and the stream on which everything happens.
pub struct Driver {
    device: CudaDevice,
    functions: HashMap<&'static str, CudaFunction>,
    num_multiprocessors: usize,
}

impl Driver {
    /// The machine's first device, if it has one.
    ///
    /// # Errors
    /// As [`Driver::open`], for a device that is there.
    pub fn first() -> Result<Option<Cuda<Self>>> {
        Ok(if num_devices()? > 0 { Some(Self::open(0)?) } else { None })
    }

    /// Number `ordinal` of the machine's devices.
    ///
    /// # Errors
    /// There is no such device, no driver, or kernels for this device are not in this build.
    pub fn open(ordinal: usize) -> Result<Cuda<Self>> {
        let mut open = lock(&OPEN);
        if let Some(driver) = open.get(&ordinal) {
            return Ok(Cuda::on(driver.clone()));
        }
        if ordinal >= num_devices()? {
            return Err(Error::Unsupported(format!("no CUDA device {ordinal} is there")));
        }
        let fails = |error| {
            Error::Unsupported(format!("CUDA device {ordinal} is there and does not open: {error}"))
        };
        let driver = Arc::new(Self::new(ordinal).map_err(fails)?);
        open.insert(ordinal, driver.clone());
        Ok(Cuda::on(driver))
    }

    fn new(ordinal: usize) -> Result<Self> {
        let device = Device::new_cuda_with_stream(ordinal)?.as_cuda_device()?.clone();
        // SAFETY: all work is on the one stream that this device was made with.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        let context = stream.context();
        keep_freed_memory(context)?;
        let functions = load(context)?;
        let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let num_multiprocessors = context.attribute(count).w()?.max(1) as usize;
        Ok(Self { device, functions, num_multiprocessors })
    }

    fn pointer(&self, buffer: &CudaSlice<u8>) -> Address {
        buffer.device_ptr(&self.device.cuda_stream()).0
    }

    /// The stream, ready for calls of this thread that cudarc has no safe form of.
    fn stream(&self) -> Result<Arc<CudaStream>> {
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        Ok(stream)
    }
}

/// Where there is no driver, none.
fn num_devices() -> Result<usize> {
    match CudaContext::device_count() {
        Ok(count) => Ok(count as usize),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(Error::Unsupported(format!("CUDA does not start: {error}"))),
    }
}

/// The kernels by name.
fn load(context: &Arc<CudaContext>) -> Result<HashMap<&'static str, CudaFunction>> {
    let (major, minor) = context.compute_capability().w()?;
    let image = Image::of((10 * major + minor) as u32, CUBINS, PTX).ok_or_else(|| {
        Error::Unsupported(format!("no kernels for compute capability {major}.{minor}"))
    })?;
    let image = match image {
        Image::Cubin(code) => Ptx::from_binary(code.to_vec()),
        Image::Ptx(text) => Ptx::from_src(text),
    };
    let module = context.load_module(image).w()?;
    let load = |&name: &&'static str| Ok((name, module.load_function(name).w()?));
    KERNELS.iter().map(load).collect()
}

/// The pool that a device's memory comes from, if it has one.
fn pool(context: &CudaContext) -> Result<Option<CUmemoryPool>> {
    if !context.has_async_alloc() {
        return Ok(None);
    }
    // SAFETY: the device of a context.
    Ok(Some(unsafe { result::device::get_mem_pool(context.cu_device()) }.w()?))
}

/// Lets the pool keep what is freed. By default it gives all of it back whenever the stream is waited
/// for, that is each step, and the next one has to ask the system again.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    let Some(pool) = pool(context)? else { return Ok(()) };
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut threshold = u64::MAX;
    // SAFETY: the attribute is a u64, which is copied.
    Ok(unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()) }
        .w()?)
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
        let stream = self.stream()?;
        // What was freed while the model was loaded is free: the pool shall not keep it.
        stream.synchronize().w()?;
        if let Some(pool) = pool(stream.context())? {
            // SAFETY: nobody has what is given back.
            unsafe { result::mem_pool::trim_to(pool, 0) }.w()?;
        }
        let (free, _) = stream.context().mem_get_info().w()?;
        Ok(Some(free as u64))
    }

    fn used_memory(&self) -> Result<Option<u64>> {
        let (free, total) = self.stream()?.context().mem_get_info().w()?;
        Ok(Some((total - free) as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: who asks for memory writes it before it is read.
        unsafe { self.device.alloc::<u8>(bytes.max(1)) }.map_err(|error| {
            Error::Unsupported(format!("cannot take {bytes} bytes of device memory: {error}"))
        })
    }

    fn read(&self, from: &CudaSlice<u8>, offset: usize, into: &mut [u8]) -> Result<()> {
        assert!(offset + into.len() <= from.len());
        let stream = self.stream()?;
        let start = self.pointer(from) + offset as Address;
        // SAFETY: within the buffer; `into` lives until the stream was waited for.
        unsafe { result::memcpy_dtoh_async(into, start, stream.cu_stream()) }.w()?;
        Ok(stream.synchronize().w()?)
    }

    fn write(&self, to: &CudaSlice<u8>, offset: usize, from: &[u8]) -> Result<()> {
        assert!(offset + from.len() <= to.len());
        let stream = self.stream()?;
        let start = self.pointer(to) + offset as Address;
        // SAFETY: within the buffer; pageable memory is staged before the call returns.
        Ok(unsafe { result::memcpy_htod_async(start, from, stream.cu_stream()) }.w()?)
    }

    fn copy(&self, buffer: &CudaSlice<u8>, from: usize, to: usize, len: usize) -> Result<()> {
        assert!(from.max(to) + len <= buffer.len() && from.abs_diff(to) >= len);
        let (stream, start) = (self.stream()?, self.pointer(buffer));
        let [from, to] = [from, to].map(|offset| start + offset as Address);
        // SAFETY: both places are within the buffer and apart, as just seen.
        Ok(unsafe { result::memcpy_dtod_async(to, from, len, stream.cu_stream()) }.w()?)
    }

    fn clear(&self, buffer: &CudaSlice<u8>, offset: usize, len: usize) -> Result<()> {
        assert!(offset + len <= buffer.len());
        let stream = self.stream()?;
        let start = self.pointer(buffer) + offset as Address;
        // SAFETY: within the buffer, as just seen.
        Ok(unsafe { result::memset_d8_async(start, 0, len, stream.cu_stream()) }.w()?)
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
        shape: (usize, usize),
        fill: impl FnOnce(Address) -> Result<()>,
    ) -> Result<Tensor> {
        output(&self.device, shape, fill)
    }

    unsafe fn launch<A: Plain>(&self, launch: Launch, args: &A) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        launch.check()?;
        let Launch { kernel, grid: [x, y], threads, shared_bytes } = launch;
        let function = self.functions.get(kernel).expect("kernels were loaded by these names");
        let config = LaunchConfig {
            grid_dim: (x as u32, y as u32, 1),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: shared_bytes as u32,
        };
        let param = Param(*args);
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(function);
        builder.arg(&param);
        // SAFETY: the caller answers for the arguments; the driver copies them before it returns.
        let launched = unsafe { builder.launch(config) };
        launched.map(drop).map_err(|error| Error::Unsupported(format!("{launch:?}: {error}")))
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
        Ok(Box::new(Float { weights: Tensor::cat(&parts, 0)?, device: self.device.clone() }))
    }
}

/// See [`Gpu::output`].
fn output(
    device: &CudaDevice,
    (rows, cols): (usize, usize),
    fill: impl FnOnce(Address) -> Result<()>,
) -> Result<Tensor> {
    let stream = device.cuda_stream();
    // SAFETY: `fill` writes all of it. An empty tensor needs an address too, and a device refuses to
    // allocate nothing.
    let mut slice = unsafe { device.alloc::<f32>((rows * cols).max(1)) }?;
    let (pointer, guard) = slice.device_ptr_mut(&stream);
    fill(pointer)?;
    drop(guard);
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Ok(Tensor::from_storage(storage, (rows, cols), BackpropOp::none(), false))
}

/// Rows of W that become floats at a time: enough for cuBLAS, little beside a whole copy.
const ROWS_PER_PRODUCT: usize = 4096;

/// Float weights (rows, cols) as in the file, multiplied as floats by cuBLAS.
struct Float {
    weights: Tensor,
    device: CudaDevice,
}

impl Float {
    fn dims(&self) -> Result<(usize, usize)> {
        Ok(self.weights.dims2()?)
    }

    /// (0, width). candle would ask the device for nothing, which it refuses.
    fn no_rows(&self, width: usize) -> Result<Tensor> {
        output(&self.device, (0, width), |_| Ok(()))
    }
}

impl Linear for Float {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, cols) = self.dims()?;
        let num_x = check_input(x, cols)?;
        if num_x == 0 {
            return self.no_rows(rows);
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
            return self.no_rows(cols);
        }
        let ids = Tensor::new(ids, self.weights.device())?;
        Ok(self.weights.index_select(&ids, 0)?.to_dtype(DType::F32)?)
    }

    fn bytes(&self) -> usize {
        self.weights.elem_count() * self.weights.dtype().size_in_bytes()
    }
}
