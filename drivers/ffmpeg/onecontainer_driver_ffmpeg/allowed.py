"""What a request may name: allow-lists, one per kind. A build of ffmpeg has far more than is safe to open to strangers.

Left out are all things that read or write what the request does not name as source or output: demuxers that follow references
(concat, image2, sdp, hls and dash but for HTTP sources), filters that open files, sockets, plug-ins or scripts, and options that
take the name of a file.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Containers and raw streams that hold everything in themselves. `mov` follows no external references unless told to.
DEMUXERS = _words(
    """
    aac ac3 eac3 ac4 aiff amr amrnb amrwb ape apng asf ass au av1 avi avs2 avs3 caf dirac dnxhd dts dtshd dv evc
    flac flv gif h261 h263 h264 hevc iamf ivf jacosub latm lrc m4v matroska webm microdvd mjpeg mlp mov mp4 m4a 3gp
    3g2 mj2 mp3 mpc mpc8 mpeg mpegts mpegvideo mxf nut obu ogg opus rm sbc sbg sox srt stl subviewer subviewer1 sup
    tak truehd tta vc1 vvc voc vplayer w64 wav webvtt wtv wv yuv4mpegpipe bmp_pipe dds_pipe dpx_pipe exr_pipe
    gif_pipe j2k_pipe jpeg_pipe jpegls_pipe jpegxl_pipe pbm_pipe pgm_pipe pgmyuv_pipe png_pipe ppm_pipe psd_pipe
    qoi_pipe sgi_pipe sunrast_pipe tiff_pipe webp_pipe xbm_pipe xwd_pipe
    """
)
# Only for HTTP sources: every address in a playlist goes through the egress guard there.
PLAYLIST_DEMUXERS = frozenset({"hls", "dash"})
RAW_AUDIO_DEMUXERS = _words(
    """
    alaw mulaw f32be f32le f64be f64le s8 s16be s16le s24be s24le s32be s32le u8 u16be u16le u24be u24le u32be u32le
    """
)
RAW_VIDEO_DEMUXER = "rawvideo"

FILE_PROTOCOLS = ("file",)
HTTP_PROTOCOLS = ("http", "https", "httpproxy", "tcp", "tls", "crypto")

FILTERS = _words(
    """
    acompressor acontrast acopy acrossfade acrusher adeclick adeclip adelay adenorm aecho aemphasis aeval aexciter
    afade afftdn aformat afreqshift agate aintegral alimiter allpass aloop amerge amix anequalizer anlmdn anull apad
    aphaser aphaseshift apulsator aresample areverse asetnsamples asetpts asetrate asettb asoftclip aspectralstats
    asubboost asubcut astats atempo atrim bandpass bandreject bass biquad channelmap channelsplit chorus compand
    compensationdelay crossfeed crystalizer dcshift deesser dialoguenhance drmeter dynaudnorm earwax ebur128
    equalizer extrastereo flanger haas hdcd headphone highpass highshelf join loudnorm lowpass lowshelf mcompand pan
    replaygain rubberband sidechaincompress sidechaingate silencedetect silenceremove speechnorm stereotools
    stereowiden superequalizer surround tiltshelf treble tremolo vibrato virtualbass volume volumedetect addroi
    alphaextract alphamerge amplify atadenoise avgblur bbox bilateral bitplanenoise blackdetect blackframe blend
    blockdetect blurdetect bm3d boxblur bwdif cas chromahold chromakey chromanr chromashift colorbalance
    colorchannelmixer colorcontrast colorcorrect colorhold colorize colorkey colorlevels colormatrix colorspace
    colortemperature concat convolution copy crop cropdetect curves datascope dblur dctdnoiz deband deblock decimate
    deconvolve dedot deflate deflicker dejudder delogo derain deshake despill detelecine dilation displace drawbox
    drawgrid drawtext edgedetect elbg entropy epx eq erosion estdif exposure fade fftdnoiz fftfilt field fieldmatch
    fieldorder fillborders floodfill format fps framepack framerate framestep freezedetect freezeframes fspp gblur
    geq gradfun graphmonitor grayworld greyedge guided haldclut hflip histeq histogram hqdn3d hqx hstack hue
    huesaturation hwdownload hysteresis idet il inflate interlace kerndeint kirsch lagfun lenscorrection limitdiff
    limiter loop lumakey lut lutrgb lutyuv lut2 maskedclamp maskedmax maskedmerge maskedmin maskedthreshold maskfun
    median mergeplanes mestimate midequalizer minterpolate mix monochrome morpho mpdecimate msad multiply negate
    nlmeans noformat noise normalize null oscilloscope overlay owdenoise pad palettegen paletteuse perspective phase
    photosensitivity pixdesctest pixelize pixscope pp7 premultiply prewitt pseudocolor pullup qp random readeia608
    remap removegrain repeatfields reverse rgbashift roberts rotate sab scale scdet scharr scroll selectivecolor
    separatefields setdar setfield setparams setpts setrange setsar settb shear showpalette shufflepixels
    shuffleplanes shuffleframes siti smartblur sobel spp stereo3d swaprect swapuv tblend telecine thumbnail
    threshold tile tinterlace tlut2 tmedian tmidequalizer tmix tonemap tpad transpose trim unpremultiply unsharp
    untile uspp v360 vaguedenoiser varblur vectorscope vflip vfrdet vibrance vif vignette vmafmotion vstack w3fdif
    waveform weave xbr xfade xmedian xstack yadif yaepblur zoompan zscale select aselect
    """
)
# Options of those filters that name files, models, plug-ins or addresses, or run commands.
_FILTER_OPTION_REFUSED = re.compile(
    r"(file|path|url|uri|model|plugin|library|socket|address|port$|command|^sofa$|^plot$|^debug_)", re.IGNORECASE
)

# Options of all encoders (AVCodecContext) that a request may set besides an encoder's own.
GENERIC_ENCODER_OPTIONS = _words(
    """
    g keyint_min bf refs qmin qmax qdiff qcomp qblur b_qfactor b_qoffset i_qfactor i_qoffset maxrate minrate bufsize
    bt rc_init_occupancy trellis me_range subq dia_size cmp subcmp mbcmp mbd sc_threshold slices flags flags2 strict
    color_primaries color_trc colorspace color_range chroma_sample_location field_order compression_level cutoff
    frame_size aspect audio_service_type global_quality
    """
)
# Text options of encoders: text is where the names of files hide, so each one is listed.
ENCODER_TEXT_OPTIONS = frozenset(
    {
        "preset",
        "tune",
        "profile",
        "level",
        "psy-rd",
        "deblock",
        "partitions",
        "usage",
        "deadline",
        "rc",
        "quality",
        "ltrp",
    }
)
# Lists of settings of x264, x265 and SVT-AV1, and what may stand in them.
ENCODER_SETTING_LISTS = frozenset({"x264-params", "x265-params", "svtav1-params"})
ENCODER_SETTINGS = _words(
    """
    keyint min-keyint scenecut bframes b-adapt b-bias b-pyramid ref rc-lookahead lookahead aq-mode aq-strength psy-
    rd psy-rdoq deblock me subme merange trellis qcomp ratetol ipratio pbratio cplxblur qblur crf crf-max qp qpmin
    qpmax qpstep bitrate vbv-maxrate vbv-bufsize vbv-init nal-hrd hrd colorprim transfer colormatrix range open-gop
    weightp weightb direct cabac mbtree mixed-refs 8x8dct fast-pskip no-dct-decimate deadzone-inter deadzone-intra
    nr aud sar overscan videoformat fullrange chromaloc bluray-compat level level-idc high-tier profile ctu min-cu-
    size rd rdoq-level sao no-sao strong-intra-smoothing cutree lossless repeat-headers info hdr10 hdr10-opt max-cll
    master-display film-grain film-grain-denoise tune enable-overlays scd tile-rows tile-columns fast-decode
    irefresh-type enable-tf mbr buf-sz buf-initial-sz
    """
)
# Encoder options that have a field of their own, belong to the service's bounds, or mean something else to the ffmpeg program.
ENCODER_OPTIONS_REFUSED = frozenset(
    {"threads", "thread_type", "stats", "passlogfile", "pass", "debug", "dump_separator", "map", "f", "i"}
)

# Options of all muxers (AVFormatContext) that a request may set besides a muxer's own.
GENERIC_MUXER_OPTIONS = frozenset(
    [
        "max_delay",
        "packetsize",
        "audio_preload",
        "chunk_duration",
        "chunk_size",
        "flush_packets",
        "metadata_header_padding",
        "output_ts_offset",
        "max_interleave_delta",
        "avoid_negative_ts",
        "strict",
    ]
)
MUXER_TEXT_OPTIONS = frozenset({"brand", "service_name", "service_provider"})

TAG_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


def filter_option_allowed(name: str) -> bool:
    return _FILTER_OPTION_REFUSED.search(name) is None
