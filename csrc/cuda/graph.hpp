// Work that is enqueued again and again, as one.
#pragma once

#include <functional>

#include "cuda/device.hpp"

namespace nfd_fast::cuda {

// A thousand small launches cost a thousand times the host's time for one; a graph of them is
// launched at once.
class Graph {
  public:
    Graph() = default;
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

#if defined(NFD_FAST_EMULATES_CUDA)
    void run(cudaStream_t, const std::function<void()>& work) { work(); }
#else
    ~Graph() {
        if (graph_) cudaGraphExecDestroy(graph_);
    }

    // `work` enqueues the same on the stream every time. It is done once as it is, so that
    // libraries load what must not be loaded in a capture, and captured the second time. Other
    // streams that take part wait for this one first and are waited for in the end.
    void run(cudaStream_t stream, const std::function<void()>& work) {
        if (!begun_) {
            begun_ = true;
            work();
            return;
        }
        if (!graph_) graph_ = capture(stream, work);
        check(cudaGraphLaunch(graph_, stream), "a graph");
    }

  private:
    static cudaGraphExec_t capture(cudaStream_t stream, const std::function<void()>& work) {
        cudaGraph_t graph = nullptr;
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a capture");
        try {
            work();
        } catch (...) {
            // Also of the streams that it has not waited for: they then capture no more.
            cudaStreamEndCapture(stream, &graph);
            if (graph) cudaGraphDestroy(graph);
            cudaGetLastError();
            throw;
        }
        check(cudaStreamEndCapture(stream, &graph), "a capture");
        cudaGraphExec_t instance = nullptr;
        const cudaError_t status =
            cudaGraphInstantiate(&instance, graph, cudaGraphInstantiateFlagUseNodePriority);
        cudaGraphDestroy(graph);
        check(status, "a capture");
        return instance;
    }

    bool begun_ = false;
    cudaGraphExec_t graph_ = nullptr;
#endif
};

}  // namespace nfd_fast::cuda
