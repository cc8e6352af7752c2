/* A stand-in for libnvidia-ml.so.1: the calls of NVML that hardware detection makes, answered from
 * the text file that the environment variable NVML_STUB names.
 *
 *     driver 570.133.20            nvmlSystemGetDriverVersion
 *     cuda 12080                   nvmlSystemGetCudaDriverVersion_v2
 *     init_error 9                 nvmlInitWithFlags returns this code
 *     count_error 999              nvmlDeviceGetCount_v2 does
 *     shutdown_error 999           nvmlShutdown does
 *     gpu name=NVIDIA H200;memory_mib=143771;uuid=GPU-1;cc=9.0;c2c=0;mig=0
 *
 * What a line leaves out is NOT_SUPPORTED, `key=error 15` is that code, and `handle=error 4` withholds
 * the whole device. Built with -DOLD_DRIVER, the library lacks the functions that came late, so that
 * their lookup fails.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, UNKNOWN = 999 };
enum { MAX_GPUS = 16, LINE = 512 };

typedef char *device_t; /* a device's handle is the text behind its `gpu ` */

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned int is_c2c_enabled;
} c2c_mode_info_t;

static struct {
    char gpus[MAX_GPUS][LINE];
    unsigned int gpu_count;
    char driver[80];
    int cuda, init_error, count_error, shutdown_error;
} machine;

static int sessions;

static int read_machine(void) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[LINE];
    if (!file)
        return UNKNOWN;
    memset(&machine, 0, sizeof machine);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        if (!strncmp(line, "gpu ", 4) && machine.gpu_count < MAX_GPUS)
            strcpy(machine.gpus[machine.gpu_count++], line + 4);
        sscanf(line, "driver %79s", machine.driver);
        sscanf(line, "cuda %d", &machine.cuda);
        sscanf(line, "init_error %d", &machine.init_error);
        sscanf(line, "count_error %d", &machine.count_error);
        sscanf(line, "shutdown_error %d", &machine.shutdown_error);
    }
    fclose(file);
    return SUCCESS;
}

/* Copies the value of `key` into `value`, which holds LINE characters; returns the call's code. */
static int look_up(const char *gpu, const char *key, char *value) {
    size_t length = strlen(key);
    int code = NOT_SUPPORTED;
    if (!sessions)
        return UNINITIALIZED;
    while (gpu) {
        if (!strncmp(gpu, key, length) && gpu[length] == '=') {
            size_t end = strcspn(gpu + length + 1, ";");
            memcpy(value, gpu + length + 1, end);
            value[end] = '\0';
            return sscanf(value, "error %d", &code) == 1 ? code : SUCCESS;
        }
        gpu = strchr(gpu, ';');
        gpu = gpu ? gpu + 1 : NULL;
    }
    return code;
}

static int copy(const char *text, char *out, unsigned int length) {
    if (strlen(text) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

static int text_of(device_t gpu, const char *key, char *out, unsigned int length) {
    char value[LINE];
    int code = look_up(gpu, key, value);
    return code ? code : copy(value, out, length);
}

static int number_of(device_t gpu, const char *key, unsigned int *out) {
    char value[LINE];
    int code = look_up(gpu, key, value);
    if (!code)
        *out = (unsigned int)strtoul(value, NULL, 10);
    return code;
}

/* For the tests: how many sessions were begun and not ended. */
int stub_sessions(void) { return sessions; }

int nvmlInitWithFlags(unsigned int flags) {
    int code = flags ? INVALID_ARGUMENT : read_machine();
    if (!code)
        code = machine.init_error;
    if (!code)
        sessions++;
    return code;
}

int nvmlShutdown(void) {
    if (!sessions)
        return UNINITIALIZED;
    sessions--;
    return machine.shutdown_error;
}

const char *nvmlErrorString(int code) {
    static char text[40];
    snprintf(text, sizeof text, "stub error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *out, unsigned int length) {
    return *machine.driver ? copy(machine.driver, out, length) : NOT_SUPPORTED;
}

int nvmlDeviceGetCount_v2(unsigned int *out) {
    if (!sessions)
        return UNINITIALIZED;
    *out = machine.gpu_count;
    return machine.count_error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *out) {
    char value[LINE];
    int code;
    if (index >= machine.gpu_count)
        return INVALID_ARGUMENT;
    code = look_up(machine.gpus[index], "handle", value);
    *out = machine.gpus[index];
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlDeviceGetName(device_t gpu, char *out, unsigned int length) { return text_of(gpu, "name", out, length); }

int nvmlDeviceGetUUID(device_t gpu, char *out, unsigned int length) { return text_of(gpu, "uuid", out, length); }

int nvmlDeviceGetMemoryInfo(device_t gpu, memory_t *out) {
    unsigned int mib;
    int code = number_of(gpu, "memory_mib", &mib);
    if (!code) {
        out->total = out->free = (unsigned long long)mib << 20;
        out->used = 0;
    }
    return code;
}

int nvmlDeviceGetCudaComputeCapability(device_t gpu, int *major, int *minor) {
    char value[LINE];
    int code = look_up(gpu, "cc", value);
    if (!code && sscanf(value, "%d.%d", major, minor) != 2)
        return UNKNOWN;
    return code;
}

#ifndef OLD_DRIVER
int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    *out = machine.cuda;
    return machine.cuda ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(device_t gpu, unsigned int *current, unsigned int *pending) {
    int code = number_of(gpu, "mig", current);
    if (!code)
        *pending = *current;
    return code;
}

int nvmlDeviceGetC2cModeInfoV(device_t gpu, c2c_mode_info_t *out) {
    return number_of(gpu, "c2c", &out->is_c2c_enabled);
}
#endif
